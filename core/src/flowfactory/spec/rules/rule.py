"""What a rule is, and running rules on what is sound of a spec, so that no mistake hides another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import attrs

from flowfactory.discovery.registry import Registry
from flowfactory.errors import Place, Problem
from flowfactory.spec.toml import Node

Rule = tuple[tuple[str, ...], Callable[..., Iterator[Problem]]]
"""What a rule looks at, by addresses among the attributes of `Spec` such as `run.precision`, and what yields the
problems of these; it is first given a `Where`. What is unsound and not among them does not keep it from being run.
Beside `tuning` there are `lora` and `full`: as they are written, be it both."""


@attrs.frozen
class Where:
    """Finds the places to point at.

    whole: whether all of the spec is sound in itself. What is not lacks attributes.
    """

    root: Node
    registry: Registry
    whole: bool = True

    def __call__(self, *address: str | int) -> Place:
        """The value at an address, or else the nearest table above it."""
        for end in range(len(address), 0, -1):
            node = self.root.at(*address[:end])
            if node is not None:
                return node.place
        return self.root.place

    def each(self, checks: Iterable[Iterator[Problem]]) -> Iterator[Problem]:
        """What several checks find, each by itself: one that looks for what is unsound says nothing, or no more."""
        for check in checks:
            try:
                yield from check
            except AttributeError:
                if self.whole:
                    raise


def broken(where: Where, parts: Mapping[str, Any], rules: Sequence[Rule]) -> list[Problem]:
    """Contradictions between the parts of a spec, of those that could be structured, by the names of its attributes."""
    return list(where.each(_run(where, parts, *rule) for rule in rules))


def _run(
    where: Where, parts: Mapping[str, Any], addresses: Sequence[str], rule: Callable[..., Iterator[Problem]]
) -> Iterator[Problem]:
    names = [address.partition(".") for address in addresses]
    if all(name in parts for name, _, _ in names):
        yield from rule(where, *(attrgetter(rest)(parts[name]) if rest else parts[name] for name, _, rest in names))
