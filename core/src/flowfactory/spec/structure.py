"""From a spec file to a checked `Spec`: every problem at once, each where it was written. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
from packaging.requirements import InvalidRequirement, Requirement

from flowfactory.contracts.key import Size
from flowfactory.contracts.specs import RewardEntry
from flowfactory.discovery.entries import KINDS, Contribution
from flowfactory.discovery.registry import Registry
from flowfactory.discovery.soundness import unmet_requirement
from flowfactory.errors import BAD_PLUGIN, PluginError, Problem, SpecError
from flowfactory.spec import rules, toml
from flowfactory.spec.reader import Reader, attributes, keys, shown_value
from flowfactory.spec.tables import (
    Checkpoint,
    Component,
    Data,
    Eval,
    Full,
    Lora,
    Memory,
    Optimizer,
    RunTable,
    Sampling,
    Spec,
    Track,
)
from flowfactory.spec.toml import Node

__all__ = ["Problem", "SpecError", "load_spec", "unstructure"]

T = TypeVar("T")

TABLES: Mapping[str, type] = {
    "run": RunTable,
    "lora": Lora,
    "full": Full,
    "data": Data,
    "sampling": Sampling,
    "optimizer": Optimizer,
    "memory": Memory,
    "eval": Eval,
    "checkpoint": Checkpoint,
    "track": Track,
}
"""Core's own tables by name; `Eval.rewards` comes from `[[eval.reward]]`."""
COMPONENTS: Mapping[str, str] = {"model": "adapters", "scheduler": "schedulers", "trainer": "trainers"}
"""Tables that name a plugin, and of which kind."""
TOP = ("extends", "requires", "plugins", *TABLES, *COMPONENTS, "reward")


def load_spec(
    path: Path, registry: Registry, sets: Sequence[str] = (), unsets: Sequence[str] = (), moved: bool = False
) -> Spec:
    """Read, merge, structure and check a spec; loads the hook modules of the plugins it uses.

    Args:
        sets: `a.b=value` changes, as on the command line. unsets: `a.b` removals, made before them.
        moved: whether files and folders that are gone do no harm, as where a run was copied to.

    Raises:
        SpecError: with every problem found.
    """
    return _Loader(toml.load(path, sets, unsets), registry, moved).spec()


def load_rewards(path: Path, registry: Registry) -> tuple[RewardEntry, ...]:
    """The `[[reward]]` tables of a file, structured and checked; whatever else a spec holds may be missing.

    Raises:
        SpecError: with every problem found.
    """
    return _Loader(toml.load(path), registry).rewards()


class _Loader:
    def __init__(self, root: Node, registry: Registry, moved: bool = False) -> None:
        self.root, self.registry, self.reader = root, registry, Reader(moved)

    def spec(self) -> Spec:
        for name in self.root.value:
            if name not in TOP:
                self.reader.unknown_key(self.root.value[name], name, TOP, "the spec")
        self._requires()
        parts: dict[str, Any] = {"plugins": self._plugins()}
        parts |= {name: self._component(name, kind) for name, kind in COMPONENTS.items()}
        parts |= {name: self._table(name) for name in TABLES if name not in ("eval", "lora", "full")}
        parts["tuning"] = self._tuning()
        reward = self.root.at("reward")  # whether there must be one, the trainer says
        parts["rewards"] = () if reward is None else self._rewards(reward, "[[reward]]")
        parts["eval"] = self._eval()
        sound = {name: part for name, part in parts.items() if part is not None}
        self.reader.problems += rules.problems(self.root, sound, self.registry)
        if self.reader.problems:
            raise SpecError(sorted(self.reader.problems, key=_reading_order))
        return Spec(**sound)

    def rewards(self) -> tuple[RewardEntry, ...]:
        self._requires()
        self._plugins()
        found = self._rewards(self.root.at("reward"), "[[reward]]")
        sound = {} if found is None else {"rewards": found}
        self.reader.problems += rules.problems(self.root, sound, self.registry)
        if self.reader.problems or found is None:
            raise SpecError(sorted(self.reader.problems, key=_reading_order))
        return found

    # --- plugins

    def _requires(self) -> None:
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

    def _plugins(self) -> tuple[str, ...]:
        found = []
        for node in self._strings("plugins"):
            is_file = node.value.endswith(".py") or "/" in node.value
            path = (node.place.folder / Path(node.value).expanduser()).resolve()
            load: Callable[[], None] = (
                (lambda path=path, node=node: self.registry.load_file(path))  # type: ignore[misc]
                if is_file
                else (lambda node=node: self.registry.observe(node.value))  # type: ignore[misc]
            )
            self._attempt(node, load)
            found.append(str(path) if is_file else node.value)
        return tuple(found)

    def _strings(self, name: str) -> Iterator[Node]:
        node = self.root.at(name)
        if node is None:
            return
        if not node.is_array or not all(isinstance(child.value, str) for child in node.value):
            self.reader.note("wrong-type", f"`{name}` expects an array of strings", node.place)
            return
        yield from node.value

    def _find(self, kind: str, node: Node) -> Contribution | None:
        return self._attempt(node, lambda: self.registry.find(kind, node.value))

    def _attempt(self, node: Node, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except PluginError as error:
            self.reader.problems.append(error.problem(node.place))
            return None

    # --- tables

    def _table(self, name: str) -> Any:
        """A core table; its defaults when absent and nothing is required."""
        node, cls = self.root.at(name), TABLES[name]
        if node is not None:
            return self.reader.table(node, cls, f"[{name}]")
        required = [f"`{key}`" for key, field in keys(cls).items() if field.default is attrs.NOTHING]
        return self._missing(f"[{name}]", required) if required else cls()

    def _missing(self, title: str, required: Sequence[str]) -> None:
        self.reader.note("missing-table", f"{title} is missing; it needs {', '.join(required)}", self.root.place)

    def _tuning(self) -> Lora | Full | None:
        lora, full = self.root.at("lora"), self.root.at("full")
        if lora is not None and full is not None:
            what = "[lora] and [full] exclude each other: train adapters or all weights"
            self.reader.note("two-tunings", what, full.key, "remove one of them, or `--unset` it")
        if lora is None and full is None:
            what = "what to train is missing: [lora] for adapters, or [full] for all weights"
            self.reader.note("no-tuning", what, self.root.place)
            return None
        return self._table("lora" if full is None else "full") if lora is None or full is None else None

    def _component(self, name: str, kind: str) -> Component | None:
        node, title = self.root.at(name), f"[{name}]"
        if node is None:
            self._missing(title, ["`name`"])
            return None
        own = self._own(node, kind, title, ())
        return None if own is None else Component(name=node.value["name"].value, spec=own)

    def _rewards(self, node: Node | None, title: str) -> tuple[RewardEntry, ...] | None:
        if node is None:
            self._missing(title, ["`name`"])
            return None
        if not node.is_array or not all(child.is_table for child in node.value):
            self.reader.note("not-an-array", f"rewards are an array of tables, each headed {title}", node.key)
            return None
        entries = [self._reward(child, title) for child in node.value]
        return None if None in entries else tuple(entry for entry in entries if entry is not None)

    def _reward(self, node: Node, title: str) -> RewardEntry | None:
        core = [key for key in keys(RewardEntry) if key not in ("name", "spec")]
        own = self._own(node, "rewards", title, core)
        name = node.at("name")
        given: dict[str, Any] = {"name": "", "spec": own}
        if name is not None and isinstance(name.value, str):
            given["name"] = name.value
            if "label" not in node.value:
                given["label"] = name.value.partition("@")[0]
        elif "label" not in node.value:
            given["label"] = ""
        entry = self.reader.table(node.only(*core), RewardEntry, title, given)
        return None if own is None else entry

    def _own(self, node: Node, kind: str, title: str, core: Sequence[str]) -> Any:
        """What a plugin's own class makes of its table, less core's keys; `None` if anything is wrong."""
        if not node.is_table:
            self.reader.note("not-a-table", f"{title} is a table, not {shown_value(node.value)}", node.place)
            return None
        name = node.at("name")
        if name is None:
            known = ", ".join(f"`{n}`" for n in self.registry.names(kind)) or "none is installed"
            self.reader.note("missing-key", f"{title} lacks `name` ({KINDS[kind].name}s: {known})", node.key)
            return None
        if not isinstance(name.value, str):
            self.reader.note("wrong-type", f"{title} `name` expects a string", name.place)
            return None
        found = self._find(kind, name)
        if found is None:
            return None
        known_keys = ("name", *core)
        return self.reader.table(node, found.provides.spec, title, known=known_keys, owner=found.title)

    def _eval(self) -> Eval | None:
        node = self.root.at("eval")
        if node is None:
            return Eval()
        if not node.is_table:
            self.reader.note("not-a-table", f"[eval] is a table, not {shown_value(node.value)}", node.place)
            return None
        reward = node.at("reward")
        rewards = () if reward is None else self._rewards(reward, "[[eval.reward]]")
        made = self.reader.table(node, Eval, "[eval]", {"rewards": rewards or ()}, known=("reward",))
        return None if rewards is None else made


def _reading_order(problem: Problem) -> tuple[bool, str, int, int]:
    place = problem.place
    if place is None or place.file is None:
        return True, "", 0, 0
    return False, str(place.file), place.line or 1 << 30, place.column


# --- and back ------------------------------------------------------------------------------------------------------


def unstructure(spec: Spec) -> dict[str, Any]:
    """The spec as plain values in the layout of a spec file, every default written out; loads to an equal `Spec`."""
    data: dict[str, Any] = {"plugins": list(spec.plugins)} if spec.plugins else {}
    for name in ("run", "data", "sampling", "optimizer", "memory", "checkpoint", "track"):
        data[name] = plain(attributes(spec)[name])
    for name in COMPONENTS:
        component = attributes(spec)[name]
        data[name] = {"name": component.name, **plain(component.spec)}
    data["lora" if isinstance(spec.tuning, Lora) else "full"] = plain(spec.tuning)
    data["reward"] = [_reward_data(entry) for entry in spec.rewards]
    if spec.eval != Eval():
        data["eval"] = {key: value for key, value in plain(spec.eval).items() if key != "rewards"}
    if spec.eval.rewards:
        data["eval"]["reward"] = [_reward_data(entry) for entry in spec.eval.rewards]
    return data


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


def _reward_data(entry: RewardEntry) -> dict[str, Any]:
    table = plain(entry)
    return {**{name: value for name, value in table.items() if name != "spec"}, **table["spec"]}
