"""TOML values into typed values: strictly, and with every problem where it was written."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin

import attrs
import cattrs

from flowfactory.contracts.key import Function, Key, Location, Size
from flowfactory.data.locations import locate, locate_function
from flowfactory.errors import Place, Problem, did_you_mean, listed, shortened
from flowfactory.names import aliases
from flowfactory.spec.kinds import (
    FAILED,
    UNSOUND,
    Failed,
    arms_of,
    complaints,
    declared,
    hints,
    is_literal,
    keys,
    part_of,
    shape,
    shown_value,
    strict_converter,
    words,
)
from flowfactory.spec.toml import Node

T = TypeVar("T")


MANY = 20
"""Mistakes of one kind in one table or array that are told one by one."""


class Reader:
    """Reads tables and values; gathers every problem instead of stopping at the first.

    Args:
        homes: which tables have a key, by its name: for keys in the wrong table.
        moved: whether files and folders that are gone do no harm.
    """

    def __init__(self, homes: Mapping[str, Sequence[str]] = MappingProxyType({}), moved: bool = False) -> None:
        self.problems: list[Problem] = []
        self._homes, self._moved = homes, moved
        self._listed: set[str] = set()

    def note(self, kind: str, what: str, place: Place | None, hint: str = "") -> None:
        """One more problem."""
        self.problems.append(Problem(kind, what, place, hint))

    def table(
        self,
        node: Node,
        cls: type[T],
        title: str,
        given: Mapping[str, Any] | None = None,
        known: Iterable[str] = (),
        owner: str = "",
    ) -> T | None:
        """An instance of an attrs class from a table, or `None` if it is no table.

        Where anything is wrong, which is then noted, the instance is a part: what is unsound has no attribute in it.

        Args:
            title: how the table is called, e.g. `[trainer]`.
            given: attributes that do not come from this table.
            known: further keys that are allowed, and read elsewhere.
            owner: who declares the keys, when it is not core.
        """
        given = given or {}
        if not node.is_table:
            self.not_a_table(node, title)
            return None
        fields = {name: field for name, field in keys(cls).items() if field.name not in given}
        self.unknown_keys(node, [*known, *fields], title, owner)
        values = dict(given)
        for name, field in fields.items():
            if name in node.value:
                values[name] = self._attribute(node.value[name], cls, field, name)
            elif not node.whole:
                values[name] = FAILED
            elif field.default is attrs.NOTHING:
                doc = declared(field).doc
                self.note("missing-key", f"{title} lacks `{name}`" + (f" ({doc})" if doc else ""), node.key)
                values[name] = FAILED
        return self._make(cls, values, node, title)

    def value(self, node: Node, kind: Any, key: Key, name: str) -> Any:
        """A typed value from a node, or `FAILED`; messages call it `name`."""
        arms = [arm for arm in arms_of(kind) if arm is not type(None)]
        if len(arms) > 1:
            return self._first_that_fits(node, arms, key, name)
        (kind,) = arms
        if kind is Size:
            return self._size(node, name)
        if attrs.has(kind):
            before = len(self.problems)
            made = self.table(node, kind, f"`{name}`")
            return made if len(self.problems) == before else Failed(made)
        if get_origin(kind) is tuple:
            return self._tuple(node, get_args(kind), key, name)
        return self._leaf(node, kind, key, name)

    def _attribute(self, node: Node, cls: type, field: attrs.Attribute[Any], name: str) -> Any:
        value = self.value(node, hints(cls)[field.name], declared(field), name)
        found = value.part if isinstance(value, Failed) else value
        try:  # a number as it was written, for the message: 0 and not 0.0
            declared(field).check(None, field, node.value if type(found) is float else found)
        except ValueError as error:
            self.note("bad-value", f"`{name}`: {error}", node.place)
            return FAILED
        except AttributeError:
            if found is value:
                raise
        return value

    def _make(self, cls: type[T], values: dict[str, Any], node: Node, title: str) -> T:
        """The instance, or a part; validators of the plugin's own run one by one, so that each error finds its key."""
        failed = [name for name, value in values.items() if isinstance(value, Failed)]
        absent = {name for name in failed if values[name].part is None}
        named = {name: field.alias or field.name for name, field in keys(cls).items()}
        try:
            with attrs.validators.disabled():
                made = part_of(cls, values) if failed else cls(**{named.get(n, n): v for n, v in values.items()})
        except (ValueError, TypeError) as error:
            self.note("bad-table", f"{title}: {error}", node.key)
            return part_of(cls, values)
        for name, field in keys(cls).items():
            if field.validator is not None and name not in absent:
                self._validate(made, name, field, node, failed)
        return made

    def _validate(self, made: Any, name: str, field: attrs.Attribute[Any], node: Node, failed: Collection[str]) -> None:
        """Note what a validator has against a value; what is unsound has no type, and other keys may be absent."""
        validate = functools.partial(field.validator, made, field)  # type: ignore[misc, arg-type]
        kind = "bad-table" if Key.METADATA in field.metadata else "bad-value"  # more than its declaration
        own = node.value.get(name)
        try:
            for number, said in complaints(validate, getattr(made, field.name)):
                entry = own.value[number] if own is not None and own.is_array and number is not None else own
                at = "" if number is None else f"[{number}]"
                self.note(kind, f"`{name}{at}`: {said}", node.key if entry is None else entry.place)
        except TypeError:
            if name not in failed:
                raise
        except AttributeError:
            if not failed:
                raise

    def not_a_table(self, node: Node, title: str) -> None:
        """Note that something else stands where a table is wanted."""
        what = f"{title} is a table, not {shown_value(node.value)}"
        self.note("not-a-table", what, node.place, _for_the_shell(node))

    def unknown_keys(self, node: Node, known: Sequence[str], title: str, owner: str = "") -> None:
        """Note the keys of a table that nobody reads."""
        unknown = [name for name in node.value if name not in known]
        for name in unknown[:MANY]:
            self._unknown_key(node.value[name], name, known, title, owner)
        if more := unknown[MANY:]:
            what = f"{len(more)} more keys of {title} are unknown, from `{shortened(more[0])}` on"
            self.note("unknown-key", what, node.value[more[0]].key)

    def _unknown_key(self, node: Node, name: str, known: Sequence[str], title: str, owner: str) -> None:
        """Note a key that nobody reads, with what may be meant. All keys there are, are told once."""
        subject = owner or title
        hint = meant(name, known, title, self._homes)
        if (owner or not hint) and subject not in self._listed:
            self._listed.add(subject)
            all_keys = f"he keys of {subject} are: {listed(known)}"
            hint = f"{hint.removesuffix('?')}{'? ' if hint.endswith('?') else '; ' if hint else ''}" + (
                f"T{all_keys}" if hint.endswith("?") else f"t{all_keys}"
            )
        self.note("unknown-key", f"unknown key `{shortened(name)}` in {title}", node.key, hint)

    def _first_that_fits(self, node: Node, arms: list[Any], key: Key, name: str) -> Any:
        alike = [arm for arm in arms if shape(arm) == ("table" if node.is_table else "array" if node.is_array else "")]
        if len(alike) == 1 and not (node.is_array and Size in arms):
            return self.value(node, alike[0], key, name)
        before = len(self.problems)
        for arm in arms:
            value = self.value(node, arm, key, name)
            if not isinstance(value, Failed):
                return value
            del self.problems[before:]
        expected = " or ".join(words(arm) for arm in arms)
        self.note("wrong-type", f"`{name}`: expected {expected}, not {shown_value(node.value)}", node.place)
        return FAILED

    def _tuple(self, node: Node, kinds: tuple[Any, ...], key: Key, name: str) -> Any:
        if not node.is_array:
            what = f"`{name}`: expected an array, not {shown_value(node.value)}"
            self.note("wrong-type", what, node.place, _for_the_shell(node))
            return FAILED
        count = len(node.value)
        each = kinds[:1] * count if len(kinds) == 2 and kinds[1] is Ellipsis else kinds
        if len(each) != count:
            self.note("wrong-type", f"`{name}`: expected an array of {len(each)}, not of {count}", node.place)
        values, failed = [], 0
        for i, (child, kind) in enumerate(zip(node.value, each, strict=False)):
            values.append(self._entry(child, kind, key, f"{name}[{i}]"))
            failed += isinstance(values[-1], Failed)
            if failed == MANY:
                self.note("wrong-type", f"`{name}`: what follows is not looked at before this is mended", child.place)
                break
        if len(each) != count:
            return FAILED
        parts = [value.part if isinstance(value, Failed) else value for value in values]
        parts = [UNSOUND if part is None else part for part in parts] + [UNSOUND] * (count - len(parts))
        return Failed(tuple(parts)) if failed else tuple(parts)

    def _entry(self, node: Node, kind: Any, key: Key, name: str) -> Any:
        """An entry of an array; the bounds of a key are those of each number."""
        value = self.value(node, kind, key, name)
        if type(value) in (int, float):
            try:
                key.check_number(node.value)
            except ValueError as error:
                self.note("bad-value", f"`{name}`: {error}", node.place)
                return FAILED
        return value

    def _size(self, node: Node, name: str) -> Any:
        numbers = [child.value for child in node.value] if node.is_array else [node.value] * 2
        if 2 <= len(numbers) <= 3 and all(type(n) is int and n > 0 for n in numbers):
            return Size(*numbers)
        expected = "expected pixels: a positive whole number, [height, width] or [height, width, frames]"
        self.note("wrong-type", f"`{name}`: {expected}, not {shown_value(node.plain())}", node.place)
        return FAILED

    def _leaf(self, node: Node, kind: Any, key: Key, name: str) -> Any:
        try:
            value = strict_converter().structure(node.plain(), kind)
        except cattrs.StructureHandlerNotFoundError:
            self.note("unreadable-type", f"`{name}` is declared with the type {kind}, which TOML cannot give", node.key)
            return FAILED
        except (ValueError, TypeError) as error:
            near = ""
            if is_literal(kind) and isinstance(node.value, str):
                near = did_you_mean(node.value, [choice for choice in get_args(kind) if isinstance(choice, str)])
            self.note("wrong-type", f"`{name}`: {error}", node.place, near)
            return FAILED
        if kind not in (Location, Function):
            return value
        folder = node.place.folder
        try:
            return locate(value, folder, key.exists) if kind is Location else locate_function(value, folder)
        except ValueError as error:
            if self._moved:
                return value
            self.note("no-such-location", f"`{name}`: {error}", node.place)
            return FAILED


def meant(name: str, known: Sequence[str], title: str, homes: Mapping[str, Sequence[str]]) -> str:
    """What a person means by an unknown key: what other programs call it, a key of another table, or one spelt alike.

    Args:
        known: the keys of the table. title: how that is called. homes: which tables have a key, by its name.
    """
    alias = aliases.key(name, title) or (aliases.table(name) if title == WHOLE else None)
    if alias is not None and (title == WHOLE or alias.here.startswith(f"{title} ") or not alias.here):
        return alias.hint()
    if near := did_you_mean(name, known, 0.8):
        return near
    if name in homes:
        return f"did you mean {' or '.join(f'{home} {name}' for home in homes[name])}?"
    return alias.hint() if alias is not None else did_you_mean(name, known)


WHOLE = "the spec"
"""What messages call the table that is the whole file."""


def _for_the_shell(node: Node) -> str:
    """What to say where a shell has taken the quotes out of a table or array."""
    of_the_shell = node.place.file is None and isinstance(node.value, str) and node.value[:1] in ("{", "[")
    return "quote it for the shell, in '…', and text in it in \"…\"" if of_the_shell else ""
