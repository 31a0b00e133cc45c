"""TOML that remembers where everything was written.

The standard library parses; the scanner only finds positions in text that is known to be valid.
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from flowfactory.errors import Place, Problem, SpecError
from flowfactory.spec.scanner import Address, Scanner, Spans


@attrs.frozen(eq=False)
class Node:
    """A TOML value and where it stands.

    value: a mapping of nodes (a table), a tuple of nodes (an array), or a scalar.
    key: its key, or its table header. place: the value itself.
    whole: whether nothing of a table is unknown; otherwise what it extends could not be read, and may have more of it.
    """

    value: Any
    key: Place
    place: Place
    whole: bool = True

    @property
    def is_table(self) -> bool:
        """Whether it has keys."""
        return isinstance(self.value, Mapping)

    @property
    def is_array(self) -> bool:
        """Whether it has numbered entries."""
        return isinstance(self.value, tuple)

    def plain(self) -> Any:
        """The value without positions, as tomllib gives it."""
        if self.is_table:
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if self.is_array else self.value

    def at(self, *address: str | int) -> Node | None:
        """The node down there, if it exists."""
        node: Node = self
        for part in address:
            in_table = node.is_table and part in node.value
            in_array = node.is_array and isinstance(part, int) and part < len(node.value)
            if not (in_table or in_array):
                return None
            node = node.value[part]
        return node

    def without(self, *keys: str) -> Node:
        """A table less some keys."""
        return attrs.evolve(self, value={key: child for key, child in self.value.items() if key not in keys})

    def lacking(self) -> Node:
        """The same as what extends something that could not be read: arrays are whole, tables are not."""
        if not self.is_table:
            return self
        return attrs.evolve(self, value={key: child.lacking() for key, child in self.value.items()}, whole=False)

    def only(self, *keys: str) -> Node:
        """A table with some keys only."""
        return attrs.evolve(self, value={key: child for key, child in self.value.items() if key in keys})


DEEPEST = 50
"""Tables in tables, or arrays in arrays."""

_DEEP_KEY = re.compile(rf"(?:^[ \t]*\[*|[{{,])[ \t]*(?:[\w-]++[ \t]*\.[ \t]*){{{DEEPEST}}}", re.MULTILINE)
_LONG_NUMBER = re.compile(r"[0-9_]{4301,}")


def parse(text: str, file: Path) -> Node:
    """One TOML document with positions.

    Raises:
        SpecError: it is not valid TOML.
    """
    text = text.replace("\r\n", "\n")
    lines = _Lines(text, file)
    if deep := _DEEP_KEY.search(text):
        raise SpecError([_too_deep(lines.place((deep.end() - 1, deep.end())))])
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise SpecError([_too_deep(Place(file))]) from None
    except ValueError as error:
        raise SpecError([_syntax_problem(str(error), lines)]) from None
    if depth(data) > DEEPEST:
        raise SpecError([_too_deep(Place(file))])
    spans = Scanner(text).scan()
    whole = Place(file)
    return _build(data, (), spans, lines, whole, whole)


def _too_deep(place: Place) -> Problem:
    return Problem("toml-syntax", f"tables or arrays lie in one another more than {DEEPEST} deep", place)


def depth(data: Any) -> int:
    """How deep tables and arrays lie in one another."""
    deep, level = 0, [data]
    while level and deep <= DEEPEST:
        inside = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [child for children in inside for child in children]
        deep += bool(level)
    return deep


def _syntax_problem(message: str, lines: _Lines) -> Problem:
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if found is None:
        number = _LONG_NUMBER.search(lines.text)
        place = Place(lines.file) if number is None else lines.place(number.span())
        return Problem("toml-syntax", f"not valid TOML: {message if number is None else TOO_LONG}", place)
    what, line, column = found.groups()
    if declared := re.fullmatch(r"Cannot declare \('?(.*?)'?,?\) twice", what):
        what = f"[{declared[1].replace(chr(39), '').replace(', ', '.')}] is there twice"
    offset = lines.starts[int(line) - 1] + int(column) - 1 if line else len(lines.text.rstrip())
    place = lines.place((offset, offset + 1))
    return Problem("toml-syntax", f"not valid TOML: {what[0].lower()}{what[1:]}", place, _habit(place))


TOO_LONG = "a whole number of more than 64 bits"

_HABITS = (
    (r".*=\s*[\u2018\u2019\u201c\u201d\u00ab\u201e].*", 'quotes are straight ones: key = "value"'),
    (r"[^\"'#]*[\u00a0\u2000-\u200b\u3000].*", "there is a space in it that is no ordinary one"),
    (r"[^\"'#]*\s//.*", "a comment begins with #"),
    (r"\s*[\w.-]+\s*=\s*[\d.,]+\s*%.*", "TOML has no percent: 0.05 is 5 %"),
    (r"\s*[\w.-]+\s*=\s*0\d+\s*(#.*)?", "a number has no zeros in front"),
    (r"\s*[\w.-]+\s*[=:]\s*(yes|no|on|off|True|False|TRUE|FALSE)\s*(#.*)?", "TOML says true or false"),
    (r"\s*[\w.-]+\s*[=:]\s*(null|None|nil|~)\s*(#.*)?", "TOML has no such value: leave the key out"),
    (r"\s*(---|%YAML.*|- .*|-)", "this looks like YAML; a spec is TOML: [[reward]] begins each entry of a list"),
    (r"\s*[\w.-]+\s*:(\s.*)?", "this looks like YAML; a spec is TOML: [table] as a heading, then key = value"),
    (r"\s*[{}].*|\s*\"[^\"]*\"\s*:.*", "this looks like JSON; a spec is TOML: [table] as a heading, then key = value"),
    (r"\s*[\w.-]+\s*=\s*(?:[A-Za-z_/~]|\.\D)[^\"'\[\]{},]*", 'text stands in quotes: key = "value"'),
    (r"\s*[\w.-]+\s*=\s*[+-]?(\.\d+|\d+\.)(e[+-]?\d+)?\s*(#.*)?", "TOML wants a digit on both sides of the point: 0.5"),
)
"""How lines of other languages begin, and what TOML has for them."""


def _habit(place: Place) -> str:
    """What to write instead, where a line is another language's."""
    line = place.text[:1000]
    return next((words for pattern, words in _HABITS if re.fullmatch(pattern, line)), "")


def fits(value: Any) -> bool:
    """Whether a scalar is one that TOML promises to keep as it is: whole numbers have 64 bits."""
    return type(value) is not int or -(2**63) <= value < 2**63


def _build(data: Any, at: Address, spans: Mapping[Address, Spans], lines: _Lines, key: Place, place: Place) -> Node:
    if at in spans:
        key, place = lines.place(spans[at].key), lines.place(spans[at].value)
    if isinstance(data, dict):
        value: Any = {k: _build(child, (*at, k), spans, lines, key, place) for k, child in data.items()}
    elif isinstance(data, list):
        value = tuple(_build(child, (*at, i), spans, lines, key, place) for i, child in enumerate(data))
    else:
        value = data
        if not fits(data):
            raise SpecError([Problem("toml-syntax", f"not valid TOML: {TOO_LONG}", place)])
    return Node(value, key, place)


class _Lines:
    """Turns offsets into places."""

    def __init__(self, text: str, file: Path) -> None:
        self.text, self.file = text, file
        self.lines = tuple(text.split("\n"))
        self.starts = [0, *(m.end() for m in re.finditer("\n", text))]

    def place(self, span: tuple[int, int]) -> Place:
        """Where a span begins; what goes on over further lines is cut at the end of the first."""
        line = bisect_right(self.starts, span[0])
        start = self.starts[line - 1]
        end = min(span[1] - start, len(self.lines[line - 1]))
        return Place(self.file, line, span[0] - start, end, self.lines)


# --- writing -------------------------------------------------------------------------------------------------------


def dumps(data: Mapping[str, Any]) -> str:
    """A TOML document; tables get headers, what lies in arrays of scalars is written inline."""
    return "\n".join(_table_lines(data, ())).strip() + "\n"


def _table_lines(table: Mapping[str, Any], above: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    nested: list[str] = []
    for key, value in table.items():
        path = (*above, key)
        header = ".".join(map(_key_text, path))
        if isinstance(value, Mapping):
            nested += ["", f"[{header}]", *_table_lines(value, path)]
        elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            for entry in value:
                nested += ["", f"[[{header}]]", *_table_lines(entry, path)]
        else:
            lines.append(f"{_key_text(key)} = {value_text(value)}")
    return lines + nested


def _key_text(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else value_text(key)


def value_text(value: Any) -> str:
    """One value as TOML, inline."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key_text(k)} = {value_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return str(value.isoformat())
