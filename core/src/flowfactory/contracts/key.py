"""How a spec class declares a key, and the types of values that keys have. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NewType

import attrs

Location = NewType("Location", str)
Function = NewType("Function", str)  # `./file.py:name` or `package.module:name`; nobody imports it to check a spec

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"

Precision = Literal["fp32", "bf16", "fp16"]

Density = Literal["gaussian", "squared-error", "none"]

Calls = Literal["batch", "sample", "unknown"]
"""For which batches one velocity makes the same calls of each network, in the same order, whatever they contain: for
any "batch", for any single "sample", or "unknown". `[memory] shard` needs this, as processes call a divided network
together. Where each noise level belongs to one of several networks, only that one needs to be called."""

_ONLY_PYTHONS = re.compile(r"\(\?(?![:=!]|<[=!])|\\[AZ]|[*+?}]\+")
"""What Python's regular expressions have and ECMA-262's have not: flags, named groups, possessive quantifiers."""


@attrs.frozen
class Key:
    """What a key's declaration says beyond its type and default; stored in the attribute's metadata."""

    METADATA: ClassVar[str] = "flowfactory"

    doc: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] | None = None
    min_length: int | None = None
    pattern: str | None = None
    exists: bool = False

    def __attrs_post_init__(self) -> None:
        if self.pattern is not None and (odd := _ONLY_PYTHONS.search(self.pattern)):
            what = f"the pattern {self.pattern!r} has {odd[0]!r}, which JSON Schema's regular expressions have not"
            raise ValueError(f"{what}; [\\s\\S] is any character at all, and patterns match as a whole as they are")

    def check(self, instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        """The attrs validator of this key.

        Raises:
            ValueError: saying what was expected, without naming the key (the caller knows its line).
        """
        if value is None:
            return
        if self.choices is not None and value not in self.choices:
            raise ValueError(f"expected one of {', '.join(map(repr, self.choices))}, not {value!r}")
        if self.min_length is not None and len(value) < self.min_length:
            unit = "characters" if isinstance(value, str) else "entries"
            raise ValueError(f"expected {self.min_length} or more {unit}, not {len(value)}")
        if self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"expected a string that matches {self.pattern}, not {value!r}")
        for number in value if isinstance(value, tuple) else (value,):
            self.check_number(number)

    def check_number(self, value: Any) -> None:
        """As `check`, of a number or an entry of a tuple; the bounds do not concern what is no number."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return
        bounds: tuple[tuple[str, float | None, Callable[[float, float], bool]], ...] = (
            ("at least", self.ge, lambda a, b: a >= b),
            ("greater than", self.gt, lambda a, b: a > b),
            ("at most", self.le, lambda a, b: a <= b),
            ("less than", self.lt, lambda a, b: a < b),
        )
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, not {value!r}")
        for words, bound, holds in bounds:
            if bound is not None and not holds(value, bound):
                raise ValueError(f"expected a number {words} {bound}, not {value!r}")


def key(
    doc: str,
    *,
    default: Any = attrs.NOTHING,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[Any] | None = None,
    min_length: int | None = None,
    pattern: str | None = None,
    exists: bool = False,
) -> Any:
    """Declare one key of a spec class.

    Args:
        doc: one sentence, with the unit if there is one.
        default: the value when the key is absent; without it the key is required.
        ge, gt, le, lt: bounds of a number, or of each number of a tuple.
        choices: the allowed values, when the type alone does not give them.
        min_length: the least number of characters of a string or entries of a tuple.
        pattern: the regular expression that the whole string must match; it must be valid in JSON Schema too.
        exists: a `Location` must be a file or folder here, never a hub id.
    """
    declared = Key(doc, ge, gt, le, lt, None if choices is None else tuple(choices), min_length, pattern, exists)
    return attrs.field(default=default, validator=declared.check, metadata={Key.METADATA: declared})


@attrs.frozen
class Size:
    """Pixels of one sample; `frames` is 1 for images."""

    height: int
    width: int
    frames: int = 1
