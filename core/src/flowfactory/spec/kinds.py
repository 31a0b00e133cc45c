"""What spec classes declare, in types and in words, and how TOML's scalars become theirs."""

from __future__ import annotations

import contextlib
import functools
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import attrs
import cattrs

from flowfactory.contracts.key import Function, Key, Location, Size
from flowfactory.errors import shortened

T = TypeVar("T")


def keys(cls: type) -> Mapping[str, attrs.Attribute[Any]]:
    """The attributes of an attrs class, by the key that sets them: `from_`, a word of Python's, is that of `from`."""
    return {(field.alias or field.name).removesuffix("_"): field for field in attrs.fields(cls) if field.init}


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


def sound(instance: Any) -> Mapping[str, Any]:
    """The values of an attrs instance by their keys; of a part, those that are sound."""
    found = {}
    for name, field in keys(type(instance)).items():
        with contextlib.suppress(AttributeError):
            found[name] = attrgetter(field.name)(instance)
    return found


def plain(value: Any) -> Any:
    """A spec value as TOML has it; `None` means absent and is left out of tables."""
    if isinstance(value, Size):
        return [value.height, value.width, *([value.frames] if value.frames != 1 else [])]
    if attrs.has(type(value)):
        own = attributes(value)
        named = {name: own[field.name] for name, field in keys(type(value)).items()}
        return {name: plain(item) for name, item in named.items() if item is not None}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        items = [plain(item) for item in value]
        return sorted(items) if isinstance(value, set | frozenset) else items
    return value


def words(kind: Any) -> str:
    """A type in words."""
    if is_literal(kind):
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "an array"
    if kind is Location:
        return "a path, a string"
    if kind is Function:
        return "a function, a string"
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
    return shortened(repr(value)) if isinstance(value, str | int | float | list) else f"the date or time {value}"


def is_literal(kind: Any) -> bool:
    """Whether a type is a `Literal[…]`."""
    return get_origin(kind) is Literal


def arms_of(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a type itself is the only one."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def shape(kind: Any) -> str:
    """What of TOML a type is made of: a "table", an "array", or else a scalar."""
    if kind is Size or get_origin(kind) is tuple:
        return "array"
    return "table" if attrs.has(kind) else ""


# --- parts ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class Failed:
    """Stands for a value whose problem is already noted. part: of a table or an array, what is sound of it."""

    part: Any = None


FAILED: Final = Failed()


class Unsound:
    """Stands in the part of an array for an entry that is unsound: whoever looks at it gets `AttributeError`."""

    def _looked_at(self, *_: object) -> NoReturn:
        raise AttributeError("an entry whose problem is already noted")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _looked_at
    __hash__ = __bool__ = __int__ = __float__ = __index__ = __len__ = __iter__ = __getitem__ = _looked_at
    __repr__ = __str__ = __format__ = __fspath__ = _looked_at
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _looked_at


UNSOUND: Final[Any] = Unsound()


def entries(array: Iterable[T]) -> list[T]:
    """The sound entries of an array, or of the part of one."""
    return [entry for entry in array if not isinstance(entry, Unsound)]


def part_of(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of an attrs class that lacks what is unsound: looking for it there raises `AttributeError`."""
    part = object.__new__(cls)
    for name, field in keys(cls).items():
        value = values.get(name, field.default)
        if isinstance(value, Failed):
            value = attrs.NOTHING if value.part is None else value.part
        if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
            value = attrs.NOTHING if value.takes_self else value.factory()
        if value is not attrs.NOTHING:
            object.__setattr__(part, field.name, value)
    return part


def complaints(validate: Callable[[Any], object], value: Any) -> Iterator[tuple[int | None, str]]:
    """What a validator that stops at the first thing it finds has against a value, all of it.

    Of an array it is asked about each string by itself, too: what it says of one alone, naming it, is wrong with that,
    whose number is given; and then about the others together.

    Raises:
        AttributeError, TypeError: as it has, of a value in which something is unsound.
    """
    own: dict[int, str] = {}
    if isinstance(value, tuple) and len(value) > 1:
        told = {i: _complaint(validate, (entry,)) for i, entry in enumerate(value) if type(entry) is str}
        own = {i: said for i, said in told.items() if _names(said, value[i])}
        yield from own.items()
    rest = tuple(entry for i, entry in enumerate(value) if i not in own) if own else value
    said = _said_by(validate, rest)
    if said and (not own or any(type(entry) is str and _names(said, entry) for entry in rest)):
        yield None, said


def _said_by(validate: Callable[[Any], object], value: Any) -> str:
    try:
        validate(value)
    except (ValueError, TypeError) as error:
        if isinstance(error, TypeError) and isinstance(value, tuple) and len(entries(value)) < len(value):
            raise
        return str(error.args[0] if error.args else error)
    return ""


def _complaint(validate: Callable[[Any], object], value: Any) -> str:
    try:
        return _said_by(validate, value)
    except AttributeError:  # it looks for another key, which is unsound
        return ""


def _names(said: str, entry: str) -> bool:
    """Whether a sentence names an entry: short words in quotes only, since others may have them, too."""
    quoted = any(form in said for form in (repr(entry), f'"{entry}"', f"`{entry}`"))
    return quoted or (len(entry) > 3 and entry in said)


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
        lambda kind: kind in (Location, Function), lambda value, _: converter.structure(value, str)
    )
    converter.register_structure_hook_func(is_literal, _literal)
    return converter


def _scalar_hook(kind: type, accepted: tuple[type, ...]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) not in accepted:
            raise ValueError(f"expected {_WORDS[kind]}, not {shown_value(value)}")
        return kind(value)

    return structure


def _literal(value: Any, kind: Any) -> Any:
    for choice in get_args(kind):
        if type(choice) is type(value) and choice == value:
            return choice
    raise ValueError(f"expected {words(kind)}, not {shown_value(value)}")
