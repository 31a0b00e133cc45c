"""A spec over what it extends, with the changes of the command line: `extends`, `--set` and `--unset`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import attrs

from flowfactory.data.text import path_of, read_text
from flowfactory.errors import Place, Problem, SpecError, did_you_mean, shown
from flowfactory.spec.toml import DEEPEST, TOO_LONG, Node, depth, fits, parse

PLUGIN_TABLES = ("model", "scheduler", "trainer")
"""Tables that are replaced as a whole where an extending spec names another plugin: its keys are others."""


LARGEST = 1 << 24
"""Bytes of a spec."""

LONGEST_CHAIN = 50
"""Specs that extend one another."""


def load(path: Path, sets: Sequence[str] = (), unsets: Sequence[str] = ()) -> Node:
    """Read a spec, what it extends, and the changes made on the command line.

    Raises:
        SpecError: unreadable or invalid TOML, a missing or circular `extends`, a change that does not fit.
    """
    root, problems = load_what_fits(path, sets, unsets)
    if problems:
        raise SpecError(problems)
    return root


def load_what_fits(
    path: Path, sets: Sequence[str] = (), unsets: Sequence[str] = (), known: Collection[str] = ()
) -> tuple[Node, Sequence[Problem]]:
    """As `load`; of files and changes those that can be had, and what is wrong with the others.

    Args:
        known: what a spec has at its top; a file that is extended must have some of it.

    Raises:
        SpecError: the file itself cannot be read.
    """
    roots, problems = _chain(path, known)
    root = _merged(roots)
    root = root.lacking() if problems else root
    changes = [(_unset, text) for text in unsets] + [(_set, text) for text in sets]
    for change, text in changes:
        try:
            root = change(root, text)
        except SpecError as error:
            problems.extend(error.problems)
    return root, problems


# --- files ---------------------------------------------------------------------------------------------------------


def _chain(path: Path, known: Collection[str]) -> tuple[list[Node], list[Problem]]:
    """A spec, what it extends, what that extends, and so on as far as they can be read; and why no further."""
    roots, files = [_read(path, None)], [path.resolve()]
    while (base := roots[-1].at("extends")) is not None:
        try:
            path = _extended(path, base)
            roots.append(_next(path, base.place, files, known))
        except SpecError as error:
            return roots, list(error.problems)
        files.append(path.resolve())
    return roots, []


def _next(path: Path, asked: Place, files: Sequence[Path], known: Collection[str]) -> Node:
    """What the last of some files extends."""
    if (file := path.resolve()) in files:
        circle = " -> ".join(shown(p) for p in (*files[files.index(file) :], file))
        raise SpecError([Problem("extends-cycle", f"`extends` goes round in a circle: {circle}", asked)])
    if len(files) == LONGEST_CHAIN:
        what = f"`extends` leads from one spec to the next more than {LONGEST_CHAIN} times"
        raise SpecError([Problem("bad-extends", what, asked)])
    root = _read(path, asked)
    if known and not {*known} & root.value.keys():  # anybody's file: nothing of it is shown
        what = f"`extends`: {shown(path)} is no spec: it has none of a spec's tables"
        raise SpecError([Problem("bad-extends", what, asked)])
    return root


def _read(path: Path, asked: Place | None) -> Node:
    return parse(_text(path, asked), path)


def _merged(roots: Sequence[Node]) -> Node:
    """Specs over what they extend, which follows them."""
    *above, merged = (root.without("extends") for root in roots)
    for own in reversed(above):
        exchanged = [table for table in PLUGIN_TABLES if _plugin(own, table) not in (None, _plugin(merged, table))]
        merged = merge(merged.without(*exchanged), own)
    return merged


def _extended(path: Path, base: Node) -> Path:
    if not isinstance(base.value, str):
        raise SpecError([Problem("bad-extends", "`extends` expects the path of one spec, a string", base.place)])
    try:
        path = path_of(base.value, base.place.folder)
    except ValueError as error:
        raise SpecError([Problem("bad-extends", f"`extends`: {error}", base.place)]) from None
    if path.suffix.lower() != ".toml":
        what = f"`extends` expects a spec, whose name ends in .toml, not {shown(path)}"
        raise SpecError([Problem("bad-extends", what, base.place)])
    return path


def _text(path: Path, asked: Place | None) -> str:
    try:
        return read_text(path, LARGEST)
    except ValueError as error:
        raise SpecError([Problem("unreadable-file", f"cannot read {shown(path)}: {error}", asked)]) from None


def _plugin(root: Node, table: str) -> Any:
    """Which plugin a table names, if it does."""
    name = root.at(table, "name")
    return None if name is None else name.value


def merge(base: Node, top: Node) -> Node:
    """`top` over `base`: tables merge, everything else is replaced."""
    if not (base.is_table and top.is_table):
        return top
    value = dict(base.value)
    for key, child in top.value.items():
        value[key] = merge(value[key], child) if key in value else child
    return attrs.evolve(top, value=value)


# --- changes from the command line ---------------------------------------------------------------------------------


def _set(root: Node, text: str) -> Node:
    """`a.b[0].c=value`, the value being TOML or else a bare string."""
    left, equals, right = text.partition("=")
    if not equals or not left.strip():
        raise SpecError([Problem("bad-set", f"--set expects KEY=VALUE, not {text!r}", _spot("--set", text))])
    key, value = _spot("--set", text, 0, len(left)), _spot("--set", text, len(left) + 1)
    if _parts(left, key)[0] == "extends":
        what = "--set: what a spec extends is read with it, before any change; write `extends` into a file"
        raise SpecError([Problem("bad-set", what, key)])
    return _put(root, _parts(left, key), _everywhere(_value(right.strip(), value), key, value), ())


def _unset(root: Node, text: str) -> Node:
    spot = _spot("--unset", text)
    return _put(root, _parts(text, spot), None, (), spot)


def _spot(option: str, text: str, start: int = 0, end: int | None = None) -> Place:
    shift = len(option) + 1
    return Place(None, 0, shift + start, shift + (len(text) if end is None else end), (f"{option} {text}",))


def _parts(text: str, spot: Place) -> list[str]:
    parts = [part.strip().strip("\"'") for part in re.sub(r"\[([0-9]+)\]", r".\1", text).split(".")]
    if len(parts) > DEEPEST:
        raise SpecError([Problem("bad-set", f"a key lies in at most {DEEPEST} tables, not {len(parts)}", spot)])
    return parts


def parse_value(text: str) -> Any:
    """A value as the command line writes it: TOML, or else the text itself.

    Raises:
        ValueError: it is TOML that no spec could hold.
    """
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise ValueError(f"arrays lie in one another more than {DEEPEST} deep") from None
    except ValueError:
        raise ValueError(TOO_LONG) from None
    return parsed["value"] if len(parsed) == 1 else text


def _value(text: str, place: Place) -> Any:
    try:
        value = parse_value(text)
    except ValueError as error:
        raise SpecError([Problem("bad-set", f"--set: {error}", place)]) from None
    if depth(value) > DEEPEST:
        raise SpecError([Problem("bad-set", f"--set: arrays lie in one another more than {DEEPEST} deep", place)])
    return value


def _everywhere(data: Any, key: Place, place: Place) -> Node:
    if isinstance(data, dict):
        return Node({k: _everywhere(v, key, place) for k, v in data.items()}, key, place)
    if not fits(data):
        raise SpecError([Problem("bad-set", f"--set: {TOO_LONG}", place)])
    return Node(tuple(_everywhere(v, key, place) for v in data) if isinstance(data, list) else data, key, place)


def _put(node: Node, parts: Sequence[str], new: Node | None, done: Sequence[str], spot: Place | None = None) -> Node:
    """`node` with `new` at `parts` below it, or without what is there when `new` is `None`."""
    spot = spot or (new.key if new is not None else node.key)
    name, rest = parts[0], parts[1:]
    here = ".".join(done) or "the spec"
    if node.is_array:
        if re.fullmatch("[0-9]{1,9}", name) is None or int(name) >= len(node.value):
            what = f"`{here}` has {len(node.value)} entries, numbered from 0; there is no entry `{name}`"
            raise SpecError([Problem("no-such-entry", what, spot)])
        children: dict[str, Node] = {str(i): child for i, child in enumerate(node.value)}
    elif node.is_table:
        children = dict(node.value)
    else:
        raise SpecError([Problem("not-a-table", f"`{here}` is a plain value, with nothing below it", spot)])
    if name not in children and not node.whole and (new is None or "".join(rest[:1]).isdecimal()):
        return node  # it may be there, in what could not be read
    if name not in children and new is None:
        hint = did_you_mean(name, children)
        raise SpecError([Problem("nothing-to-unset", f"`{'.'.join([*done, *parts])}` is not set", spot, hint)])
    if rest:
        below = children.get(name) or Node({}, spot, spot, node.whole)
        children[name] = _put(below, rest, new, [*done, name], spot)
    elif new is None:
        del children[name]
    else:
        children[name] = new
    return attrs.evolve(node, value=tuple(children.values()) if node.is_array else children)
