"""What a spec names of plugins: those that it requires, those in files, and whose class reads a table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import attrs
from packaging.requirements import InvalidRequirement, Requirement

from flowfactory.data.text import path_of
from flowfactory.discovery.entries import KINDS, Contribution
from flowfactory.discovery.registry import Registry
from flowfactory.discovery.soundness import unmet_requirement
from flowfactory.errors import BAD_PLUGIN, PluginError, Problem
from flowfactory.spec.kinds import FAILED, keys
from flowfactory.spec.reader import Reader
from flowfactory.spec.toml import Node

T = TypeVar("T")


@attrs.frozen
class Named:
    """Finds the plugins that a spec names; what is wrong is noted by the reader."""

    root: Node
    registry: Registry
    reader: Reader

    def requires(self) -> None:
        """Look at `requires`."""
        for node in self._strings("requires"):
            try:
                requirement = Requirement(node.value)
            except InvalidRequirement:
                what = f"`requires` expects entries such as 'flowfactory-plugin-x>=1.0', not {node.value!r}"
                self.reader.note("bad-requirement", what, node.place)
                continue
            unmet = unmet_requirement(requirement)
            if unmet is not None:
                what = f"the spec requires {requirement}, {unmet[0]}"
                self.reader.problems.append(Problem("unmet-requirement", what, node.place, unmet[1], BAD_PLUGIN))

    def plugins(self) -> tuple[str, ...]:
        """What `plugins` lists, files by their paths; all of it is loaded."""
        found = []
        for node in self._strings("plugins"):
            name, load = node.value, functools.partial(self.registry.observe, node.value)
            if name.endswith(".py") or "/" in name:
                try:
                    path = path_of(name, node.place.folder)
                except ValueError as error:
                    self.reader.note("no-such-location", f"`plugins`: {error}", node.place)
                    continue
                name, load = str(path), functools.partial(self.registry.load_file, path)
            self._attempt(node, load)
            found.append(name)
        return tuple(found)

    def _strings(self, name: str) -> Iterator[Node]:
        node = self.root.at(name)
        if node is None:
            return
        children = node.value if node.is_array else ()
        if not node.is_array or not all(isinstance(child.value, str) for child in children):
            self.reader.note("wrong-type", f"`{name}` expects an array of strings", node.place)
        yield from (child for child in children if isinstance(child.value, str))

    def _attempt(self, node: Node, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except PluginError as error:
            if error.kind == "plugin-missing" and not self.root.whole and self.root.at("plugins") is None:
                return None  # it may be in a file of the `plugins` that could not be read
            self.reader.problems.append(error.problem(node.place))
            return None

    def table(self, node: Node, kind: str, title: str, core: Sequence[str]) -> Any:
        """What a plugin's own class makes of its table, less core's keys; `None` if it is not known which class."""
        if not node.is_table:
            self.reader.not_a_table(node, title)
            return None
        found = self._named(node, kind, title)
        if found is None:
            self._common(node, kind, title)
            return None
        known_keys = ("name", *core)
        return self.reader.table(node, found.provides.spec, title, known=known_keys, owner=found.title)

    def _named(self, node: Node, kind: str, title: str) -> Contribution | None:
        name = node.at("name")
        if name is None and not node.whole:
            return None
        if name is None:
            known = ", ".join(f"`{n}`" for n in self.registry.names(kind)) or "none is installed"
            self.reader.note("missing-key", f"{title} lacks `name` ({KINDS[kind].name}s: {known})", node.key)
            return None
        if not isinstance(name.value, str):
            self.reader.note("wrong-type", f"{title} `name` expects a string", name.place)
            return None
        return self._attempt(name, functools.partial(self.registry.find, kind, name.value))

    def _common(self, node: Node, kind: str, title: str) -> None:
        """Look at the keys that all plugins of a kind have, where it is not known which plugin is meant."""
        cls = KINDS[kind].base
        if attrs.has(cls):
            own = keys(cls)
            absent = {field.name: FAILED for name, field in own.items() if name not in node.value}
            self.reader.table(node.only(*own), cls, title, absent)
