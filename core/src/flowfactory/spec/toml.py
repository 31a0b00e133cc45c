"""TOML that remembers where everything was written: `extends`, `--set` and `--unset` included.

The standard library parses; the scanner only finds positions in text that is known to be valid.
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from flowfactory.errors import Place, Problem, SpecError, did_you_mean, shown
from flowfactory.spec.scanner import Address, Scanner, Spans


@attrs.frozen(eq=False)
class Node:
    """A TOML value and where it stands.

    value: a mapping of nodes (a table), a tuple of nodes (an array), or a scalar.
    key: its key, or its table header. place: the value itself.
    """

    value: Any
    key: Place
    place: Place

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

    def only(self, *keys: str) -> Node:
        """A table with some keys only."""
        return attrs.evolve(self, value={key: child for key, child in self.value.items() if key in keys})


PLUGIN_TABLES = ("model", "scheduler", "trainer")
"""Tables that are replaced as a whole where an extending spec names another plugin: its keys are others."""


def load(path: Path, sets: Sequence[str] = (), unsets: Sequence[str] = ()) -> Node:
    """Read a spec, what it extends, and the changes made on the command line.

    Raises:
        SpecError: unreadable or invalid TOML, a missing or circular `extends`, a change that does not fit.
    """
    root = _read(path, None, ())
    problems: list[Problem] = []
    changes = [(_unset, text) for text in unsets] + [(_set, text) for text in sets]
    for change, text in changes:
        try:
            root = change(root, text)
        except SpecError as error:
            problems.extend(error.problems)
    if problems:
        raise SpecError(problems)
    return root


# --- files ---------------------------------------------------------------------------------------------------------


def _read(path: Path, asked: Place | None, below: tuple[Path, ...]) -> Node:
    file = path.resolve()
    if file in below:
        chain = " -> ".join(shown(p) for p in (*below[below.index(file) :], file))
        raise SpecError([Problem("extends-cycle", f"`extends` goes round in a circle: {chain}", asked)])
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError([Problem("unreadable-file", f"cannot read {shown(file)}: {reason}", asked)]) from None
    root = parse(text, path)
    base = root.at("extends")
    if base is None:
        return root
    if not isinstance(base.value, str):
        raise SpecError([Problem("bad-extends", "`extends` expects the path of one spec, a string", base.place)])
    extended, own = _read(file.parent / base.value, base.place, (*below, file)), root.without("extends")
    exchanged = [table for table in PLUGIN_TABLES if _plugin(own, table) not in (None, _plugin(extended, table))]
    return merge(extended.without(*exchanged), own)


def _plugin(root: Node, table: str) -> Any:
    """Which plugin a table names, if it does."""
    name = root.at(table, "name")
    return None if name is None else name.value


def parse(text: str, file: Path) -> Node:
    """One TOML document with positions.

    Raises:
        SpecError: it is not valid TOML.
    """
    text = text.replace("\r\n", "\n")
    lines = _Lines(text, file)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError([_syntax_problem(str(error), lines)]) from None
    spans = Scanner(text).scan()
    whole = Place(file)
    return _build(data, (), spans, lines, whole, whole)


def merge(base: Node, top: Node) -> Node:
    """`top` over `base`: tables merge, everything else is replaced."""
    if not (base.is_table and top.is_table):
        return top
    value = dict(base.value)
    for key, child in top.value.items():
        value[key] = merge(value[key], child) if key in value else child
    return attrs.evolve(top, value=value)


def _syntax_problem(message: str, lines: _Lines) -> Problem:
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if found is None:
        return Problem("toml-syntax", f"not valid TOML: {message}", Place(lines.file))
    what, line, column = found.groups()
    offset = lines.starts[int(line) - 1] + int(column) - 1 if line else len(lines.text.rstrip())
    return Problem("toml-syntax", f"not valid TOML: {what[0].lower()}{what[1:]}", lines.place((offset, offset + 1)))


def _build(data: Any, at: Address, spans: Mapping[Address, Spans], lines: _Lines, key: Place, place: Place) -> Node:
    if at in spans:
        key, place = lines.place(spans[at].key), lines.place(spans[at].value)
    if isinstance(data, dict):
        value: Any = {k: _build(child, (*at, k), spans, lines, key, place) for k, child in data.items()}
    elif isinstance(data, list):
        value = tuple(_build(child, (*at, i), spans, lines, key, place) for i, child in enumerate(data))
    else:
        value = data
    return Node(value, key, place)


class _Lines:
    """Turns offsets into places."""

    def __init__(self, text: str, file: Path) -> None:
        self.text, self.file = text, file
        self.starts = [0, *(m.end() for m in re.finditer("\n", text))]

    def place(self, span: tuple[int, int]) -> Place:
        """Where a span begins; what goes on over further lines is cut at the end of the first."""
        line = bisect_right(self.starts, span[0])
        start = self.starts[line - 1]
        text = self.text[start:].split("\n", 1)[0]
        return Place(self.file, line, span[0] - start, min(span[1] - start, len(text)), text)


# --- changes from the command line ---------------------------------------------------------------------------------


def _set(root: Node, text: str) -> Node:
    """`a.b[0].c=value`, the value being TOML or else a bare string."""
    left, equals, right = text.partition("=")
    if not equals or not left.strip():
        raise SpecError([Problem("bad-set", f"--set expects KEY=VALUE, not {text!r}", _spot("--set", text))])
    key, value = _spot("--set", text, 0, len(left)), _spot("--set", text, len(left) + 1)
    return _put(root, _parts(left), _everywhere(parse_value(right.strip()), key, value), ())


def _unset(root: Node, text: str) -> Node:
    return _put(root, _parts(text), None, (), _spot("--unset", text))


def _spot(option: str, text: str, start: int = 0, end: int | None = None) -> Place:
    shift = len(option) + 1
    return Place(None, 0, shift + start, shift + (len(text) if end is None else end), f"{option} {text}")


def _parts(text: str) -> list[str]:
    return [part.strip().strip("\"'") for part in re.sub(r"\[(\d+)\]", r".\1", text).split(".")]


def parse_value(text: str) -> Any:
    """A value as the command line writes it: TOML, or else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _everywhere(data: Any, key: Place, place: Place) -> Node:
    if isinstance(data, dict):
        return Node({k: _everywhere(v, key, place) for k, v in data.items()}, key, place)
    return Node(tuple(_everywhere(v, key, place) for v in data) if isinstance(data, list) else data, key, place)


def _put(node: Node, parts: Sequence[str], new: Node | None, done: Sequence[str], spot: Place | None = None) -> Node:
    """`node` with `new` at `parts` below it, or without what is there when `new` is `None`."""
    spot = spot or (new.key if new is not None else node.key)
    name, rest = parts[0], parts[1:]
    here = ".".join(done) or "the spec"
    if node.is_array:
        if not name.isdigit() or int(name) >= len(node.value):
            what = f"`{here}` has {len(node.value)} entries, numbered from 0; there is no entry `{name}`"
            raise SpecError([Problem("no-such-entry", what, spot)])
        children: dict[str, Node] = {str(i): child for i, child in enumerate(node.value)}
    elif node.is_table:
        children = dict(node.value)
    else:
        raise SpecError([Problem("not-a-table", f"`{here}` is a plain value, with nothing below it", spot)])
    if name not in children and new is None:
        hint = did_you_mean(name, children)
        raise SpecError([Problem("nothing-to-unset", f"`{'.'.join([*done, *parts])}` is not set", spot, hint)])
    if rest:
        below = children.get(name) or Node({}, spot, spot)
        children[name] = _put(below, rest, new, [*done, name], spot)
    elif new is None:
        del children[name]
    else:
        children[name] = new
    return attrs.evolve(node, value=tuple(children.values()) if node.is_array else children)


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
