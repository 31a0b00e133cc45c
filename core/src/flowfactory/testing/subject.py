"""An entry under test: its hook module, its spec with the keys of its `tiny`, its target; each made when asked for."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from flowfactory.contracts.types import Row
from flowfactory.discovery.entries import Contribution, Entry, noun
from flowfactory.discovery.registry import Registry
from flowfactory.errors import PluginError
from flowfactory.spec import toml
from flowfactory.spec.reader import Reader

Keys = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
"""Keys of an entry's table, or a function that makes them and writes what they name into a folder."""

Check = Callable[[Any], None]
"""A function of a subject that raises where it is not as its docstring says."""

ROWS = (
    Row("a red circle"),
    Row("two blue squares", negative_prompt="a photograph"),
    Row('a sign that says "hello"'),
    Row("a green triangle left of a yellow circle"),
)
"""The prompts entries are tried on, when their author names no others."""


class Broken(AssertionError):
    """A check found a fault; the message says what was expected, and what came instead."""


class NotOwed(Exception):
    """A check does not apply to the entry; the message says why."""


def expect(holds: object, what: str) -> None:
    """Raises:
    Broken: saying `what` is wrong, unless it `holds`.
    """
    if not holds:
        raise Broken(what)


@attrs.frozen
class Hints:
    """What a plugin's author says to the kit.

    keys: by entry name, keys its table needs beyond those of its `tiny`. rows: prompts to try it on.
    """

    keys: Mapping[str, Keys] = attrs.field(factory=dict)
    rows: Sequence[Row] = ROWS


class Subject(ABC):
    """One entry under test."""

    def __init__(self, entry: Entry, hints: Hints, registry: Callable[[], Registry] = Registry) -> None:
        self.entry, self.hints, self.registry = entry, hints, registry
        self.wanted = f"{entry.name}@{entry.source.name}"

    @cached_property
    def folder(self) -> Path:
        """A folder of its own, for whatever is written; it goes when the subject does."""
        path = Path(tempfile.mkdtemp(prefix=f"flowfactory-{self.entry.name}-"))
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        return path

    @abstractmethod
    def checks(self) -> Sequence[Check]:
        """What entries of its kind owe beyond what every entry does.

        Raises:
            PluginError: its hook module does not say what it is.
        """

    @cached_property
    def contribution(self) -> Contribution:
        """What its hook says; loads the hook module."""
        return self.registry().find(self.entry.kind, self.wanted)

    @cached_property
    def target(self) -> Any:
        """The implementation."""
        return self.registry().target(self.entry.kind, self.wanted)

    @cached_property
    def keys(self) -> Mapping[str, Any]:
        """The keys it is tried with: of its `tiny`, and the author's."""
        folder = self.folder / "tiny"
        folder.mkdir(exist_ok=True)
        given = self.hints.keys.get(self.entry.name, {})
        return {**self.tiny(folder), **(given(folder) if callable(given) else given)}

    @cached_property
    def spec(self) -> Any:
        """Its spec with those keys, read as a run reads it."""
        return self.read(self.keys)

    def tiny(self, folder: Path) -> Mapping[str, Any]:
        """Keys with which it works offline; writes what they name into `folder`."""
        return {}

    def make(self) -> Any:
        """A new instance of the target."""
        return self.target(self.spec)

    def read(self, keys: Mapping[str, Any]) -> Any:
        """The spec that a table with these keys is.

        Raises:
            Broken: naming what is wrong with them.
        """
        reader, provides = Reader(), self.contribution.provides
        node = toml.parse(toml.dumps(keys), self.folder / "keys.toml")
        made = reader.table(node, provides.spec, f"the table of {noun(self.entry.kind)} `{self.entry.name}`")
        expect(not reader.problems, " and ".join(problem.what for problem in reader.problems))
        return made


@contextmanager
def offline() -> Iterator[None]:
    """Whoever asks for another machine meanwhile is refused."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def refuse_far(connection: socket.socket, address: Any) -> None:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_unless_local(address[0])
        connect(connection, address)

    def refuse_names(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_unless_local(host)
        return resolve(host, *args, **kwargs)

    socket.socket.connect = refuse_far  # type: ignore[assignment,method-assign]
    socket.getaddrinfo = refuse_names
    try:
        yield
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]
        socket.getaddrinfo = resolve


def _refuse_unless_local(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        local = name in (None, "", "localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = False
    if not local:
        raise Broken(f"it must work offline, but asks for {name}")


def cause(error: BaseException) -> str:
    """What an exception says: the kit's own and the registry's as they are, others with their type."""
    if isinstance(error, Broken | PluginError | NotOwed):
        return str(error)
    return f"{type(error).__name__}: {error}"
