"""TOML values into typed values: strictly, and with every problem where it was written."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs

from flowfactory.contracts.key import Key, Location, Size
from flowfactory.errors import Place, Problem, did_you_mean, listed
from flowfactory.spec.locations import locate
from flowfactory.spec.toml import Node

T = TypeVar("T")


class _Failed:
    """Stands for a value whose problem is already noted."""


FAILED: Final = _Failed()


class Reader:
    """Reads tables and values; gathers every problem instead of stopping at the first.

    Args:
        moved: whether files and folders that are gone do no harm.
    """

    def __init__(self, moved: bool = False) -> None:
        self.problems: list[Problem] = []
        self._moved = moved

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
        """An instance of an attrs class from a table, or `None` if anything is wrong.

        Args:
            title: how the table is called, e.g. `[trainer]`.
            given: attributes that do not come from this table.
            known: further keys that are allowed, and read elsewhere.
            owner: who declares the keys, when it is not core.
        """
        given = given or {}
        if not node.is_table:
            self.note("not-a-table", f"{title} is a table, not {shown_value(node.value)}", node.place)
            return None
        fields = {name: field for name, field in keys(cls).items() if field.name not in given}
        for name in node.value:
            if name not in (*fields, *known):
                self.unknown_key(node.value[name], name, [*known, *fields], title, owner)
        values = dict(given)
        for name, field in fields.items():
            if name in node.value:
                values[name] = self._attribute(node.value[name], cls, field)
            elif field.default is attrs.NOTHING:
                doc = declared(field).doc
                self.note("missing-key", f"{title} lacks `{name}`" + (f" ({doc})" if doc else ""), node.key)
                values[name] = FAILED
        if any(value is FAILED for value in values.values()):
            return None
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
            made = self.table(node, kind, f"`{name}`")
            return FAILED if made is None else made
        if get_origin(kind) is tuple:
            return self._tuple(node, get_args(kind), key, name)
        return self._leaf(node, kind, key, name)

    def _attribute(self, node: Node, cls: type, field: attrs.Attribute[Any]) -> Any:
        value = self.value(node, hints(cls)[field.name], declared(field), field.alias or field.name)
        if value is not FAILED:
            try:
                declared(field).check(None, field, value)
            except ValueError as error:
                self.note("bad-value", f"`{field.alias}`: {error}", node.place)
                return FAILED
        return value

    def _make(self, cls: type[T], values: dict[str, Any], node: Node, title: str) -> T | None:
        """The instance; validators that are the plugin's own run one by one, so that each error finds its key."""
        try:
            with attrs.validators.disabled():
                made = cls(**values)
        except (ValueError, TypeError) as error:
            self.note("bad-table", f"{title}: {error}", node.key)
            return None
        sound = True
        for name, field in keys(cls).items():
            if field.validator is not None and Key.METADATA not in field.metadata:
                try:
                    field.validator(made, field, attributes(made)[field.name])
                except (ValueError, TypeError) as error:
                    place = node.value[name].place if name in node.value else node.key
                    self.note("bad-value", f"`{name}`: {error.args[0] if error.args else error}", place)
                    sound = False
        return made if sound else None

    def unknown_key(self, node: Node, name: str, known: Iterable[str], title: str, owner: str = "") -> None:
        """Note a key that nobody reads, with the nearest one or all there are."""
        near = did_you_mean(name, known)
        all_keys = f"he keys of {owner or title} are: {listed(known)}"
        hint = f"{near} T{all_keys}" if near and owner else near or f"t{all_keys}"
        self.note("unknown-key", f"unknown key `{name}` in {title}", node.key, hint)

    def _first_that_fits(self, node: Node, arms: list[Any], key: Key, name: str) -> Any:
        before = list(self.problems)
        for arm in arms:
            self.problems = list(before)
            value = self.value(node, arm, key, name)
            if value is not FAILED:
                return value
        self.problems = before
        expected = " or ".join(words(arm) for arm in arms)
        self.note("wrong-type", f"`{name}`: expected {expected}, not {shown_value(node.value)}", node.place)
        return FAILED

    def _tuple(self, node: Node, kinds: tuple[Any, ...], key: Key, name: str) -> Any:
        if not node.is_array:
            self.note("wrong-type", f"`{name}`: expected an array, not {shown_value(node.value)}", node.place)
            return FAILED
        many = len(kinds) == 2 and kinds[1] is Ellipsis
        if not many and len(node.value) != len(kinds):
            self.note(
                "wrong-type", f"`{name}`: expected an array of {len(kinds)}, not of {len(node.value)}", node.place
            )
            return FAILED
        each = kinds[:1] * len(node.value) if many else kinds
        values = tuple(
            self.value(*pair, key, f"{name}[{i}]") for i, pair in enumerate(zip(node.value, each, strict=True))
        )
        return FAILED if any(value is FAILED for value in values) else values

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
        if kind is not Location:
            return value
        try:
            return locate(value, node.place.folder, key.exists)
        except ValueError as error:
            if self._moved:
                return value
            self.note("no-such-location", f"`{name}`: {error}", node.place)
            return FAILED


# --- what classes declare ------------------------------------------------------------------------------------------


def keys(cls: type) -> Mapping[str, attrs.Attribute[Any]]:
    """The attributes of an attrs class, by the key that sets them."""
    return {field.alias or field.name: field for field in attrs.fields(cls) if field.init}


def declared(field: attrs.Attribute[Any]) -> Key:
    """What `key(...)` said; an empty declaration for a plain attrs field."""
    found = field.metadata[Key.METADATA] if Key.METADATA in field.metadata else Key("")
    assert isinstance(found, Key)
    return found


def hints(cls: type) -> Mapping[str, Any]:
    """The types of an attrs class's attributes."""
    return _hints(cls)


_hints = functools.cache(typing.get_type_hints)


def attributes(instance: Any) -> Mapping[str, Any]:
    """The attributes of an attrs instance by name, values as they are."""
    return attrs.asdict(instance, recurse=False)


def words(kind: Any) -> str:
    """A type in words."""
    if is_literal(kind):
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "an array"
    if kind is Location:
        return "a path, a string"
    if attrs.has(kind):
        return "a table"
    return _WORDS.get(kind, str(kind))


def shown_value(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, tuple):
        return "an array"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, str | int | float | list) else f"the date or time {value}"


def is_literal(kind: Any) -> bool:
    """Whether a type is a `Literal[…]`."""
    return get_origin(kind) is Literal


def arms_of(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a type itself is the only one."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


# --- scalars -------------------------------------------------------------------------------------------------------

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
_ACCEPTS: Mapping[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


@functools.cache
def strict_converter() -> cattrs.Converter:
    """A cattrs converter that turns no scalar into another, but for whole numbers into floats."""
    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
    for kind, accepted in _ACCEPTS.items():
        converter.register_structure_hook(kind, _scalar_hook(kind, accepted))
    converter.register_structure_hook_func(
        lambda kind: kind is Location, lambda value, _: converter.structure(value, str)
    )
    converter.register_structure_hook_func(is_literal, _literal)
    return converter


def _scalar_hook(kind: type, accepted: tuple[type, ...]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) not in accepted:
            raise ValueError(f"expected {_WORDS[kind]}, not {shown_value(value)}")
        try:
            return kind(value)
        except OverflowError:
            raise ValueError("expected a number that a float can hold") from None

    return structure


def _literal(value: Any, kind: Any) -> Any:
    for choice in get_args(kind):
        if type(choice) is type(value) and choice == value:
            return choice
    raise ValueError(f"expected {words(kind)}, not {shown_value(value)}")
