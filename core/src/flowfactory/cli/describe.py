"""Declared keys in words, for the command line and the reference pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args, get_origin

import attrs

from flowfactory.contracts.key import Function, Key, Location, Size
from flowfactory.discovery.entries import KINDS, Contribution
from flowfactory.spec import toml
from flowfactory.spec.kinds import arms_of, attributes, declared, hints, is_literal, keys, plain
from flowfactory.spec.tables import RewardEntry

_NAMES = {
    bool: "bool", int: "int", float: "float", str: "string", Location: "path", Function: "function", Size: "size",
}  # fmt: skip


@attrs.frozen
class KeyDescription:
    """One key: `default` is TOML, "required", or empty when its absence means something."""

    name: str
    type: str
    default: str
    doc: str


def describe(cls: type, standing: Any = None) -> Sequence[KeyDescription]:
    """Every key of an attrs class; those of a nested table follow it as `window.rule`.

    Args:
        standing: the instance that stands where the table is left out; its values are the defaults then.
    """
    rows = []
    types = hints(cls)
    for name, field in keys(cls).items():
        kind, key = types[field.name], declared(field)
        if kind is Any or RewardEntry in get_args(kind):
            continue  # read from another table
        if attrs.has(kind) and kind is not Size:
            rows.append(KeyDescription(name, "table", "", key.doc))
            inner = describe(kind, field.default if isinstance(field.default, kind) else None)
            rows += [attrs.evolve(row, name=f"{name}.{row.name}") for row in inner]
        else:
            default = field.default if standing is None else attributes(standing)[field.name]
            rows.append(KeyDescription(name, type_words(kind, key), _default(default), key.doc))
    return rows


def example(contribution: Contribution) -> str:
    """A table to paste: keys that must be there with a stand-in, those with a default as comments."""
    spec, types = contribution.provides.spec, hints(contribution.provides.spec)
    lines = [KINDS[contribution.kind].key.removesuffix(" name"), f'name = "{contribution.provides.name}"']
    for row in describe(spec):
        field = keys(spec).get(row.name)
        if row.default == "required" and field is not None:
            lines.append(f"{row.name} = {toml.value_text(_stand_in(types[field.name], declared(field)))}")
        elif row.default not in ("", "required"):
            lines.append(f"# {row.name} = {row.default}")
    return "\n".join(lines)


def _stand_in(kind: Any, key: Key) -> Any:
    """A value of about the right kind, for a person to replace."""
    arm = next(arm for arm in arms_of(kind) if arm is not type(None))
    if is_literal(arm):
        return get_args(arm)[0]
    if arm in (int, float):
        return arm(next((bound for bound in (key.ge, key.le) if bound is not None), 1))
    return [] if get_origin(arm) is tuple else "..."


def type_words(kind: Any, key: Key) -> str:
    """A type and its bounds: `int >= 1`, `"sum" or "gdpo"`, `[float, float]`."""
    arms = [arm for arm in arms_of(kind) if arm is not type(None)]
    bounds = [
        f"{sign} {bound}"
        for sign, bound in ((">=", key.ge), (">", key.gt), ("<=", key.le), ("<", key.lt))
        if bound is not None
    ]
    choices = [toml.value_text(choice) for choice in key.choices or ()]
    return " ".join([" or ".join(choices or map(_type, arms)), ", ".join(bounds)]).strip()


def _type(kind: Any) -> str:
    if is_literal(kind):
        return " or ".join(toml.value_text(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "[" + ", ".join("…" if arm is Ellipsis else _type(arm) for arm in get_args(kind)) + "]"
    if kind in _NAMES:
        return _NAMES[kind]
    return "table" if attrs.has(kind) else str(kind)


def _default(default: Any) -> str:
    if default is attrs.NOTHING:
        return "required"
    if default is None or isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return ""
    return toml.value_text(plain(default))
