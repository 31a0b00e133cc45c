"""From a spec file to a checked `Spec`: every problem at once, each where it was written. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from flowfactory.data.locations import file_of
from flowfactory.data.sources import Data
from flowfactory.discovery.registry import Registry
from flowfactory.errors import Problem, SpecError, shown
from flowfactory.spec import layers
from flowfactory.spec.kinds import FAILED, UNSOUND, keys
from flowfactory.spec.named import Named
from flowfactory.spec.reader import WHOLE, Reader
from flowfactory.spec.rules import offloading, scores, shortcuts, stochastic, teams, updates
from flowfactory.spec.rules.rule import Rule, Where, broken
from flowfactory.spec.tables import (
    COMPONENTS,
    Checkpoint,
    Component,
    Eval,
    Full,
    Lora,
    Memory,
    Optimizer,
    RewardEntry,
    RunTable,
    Sampling,
    Spec,
    Track,
)
from flowfactory.spec.toml import Node

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
RULES: tuple[Rule, ...] = (
    *(*stochastic.RULES, *updates.RULES, *scores.RULES),
    *(*shortcuts.RULES, *offloading.RULES, *teams.RULES),
)
TOP = ("extends", "requires", "plugins", *TABLES, *COMPONENTS, "reward")


def load_spec(
    path: Path,
    registry: Registry,
    sets: Sequence[str] = (),
    unsets: Sequence[str] = (),
    also: Sequence[Rule] = (),
    tell: Callable[[Problem], object] = lambda note: None,
    moved: bool = False,
) -> Spec:
    """Read, merge, structure and check a spec; loads the hook modules of the plugins it uses.

    Args:
        sets: `a.b=value` changes, as on the command line. unsets: `a.b` removals, made before them.
        also: further rules, that look at more than the spec. tell: is given what is worth a note and no mistake.
        moved: whether files and folders that are gone do no harm, as where a run was copied to.

    Raises:
        SpecError: with every problem found.
        PluginError: a plugin's own class cannot say what it has to.
    """
    root, problems = layers.load_what_fits(path, sets, unsets, TOP)
    with registry.blaming():
        spec, notes = _Loader(path, root, problems, registry, also, moved).spec()
    for note in notes:
        tell(note)
    return spec


def read_spec(path: Path, sets: Sequence[str] = (), unsets: Sequence[str] = ()) -> Spec:
    """`load_spec` for commands of plugins; they need no registry. path: also `package:examples/x.toml`."""
    return load_spec(_found(path), Registry(), sets, unsets)


def _found(path: Path) -> Path:
    try:
        return file_of(str(path))
    except ValueError as error:
        raise SpecError([Problem("unreadable-file", f"cannot read {shown(path)}: {error}")]) from None


def load_rewards(path: Path, registry: Registry, sets: Sequence[str] = ()) -> tuple[RewardEntry, ...]:
    """The `[[reward]]` tables of a file, changed and checked as in a spec, of which all else may be missing.

    Args:
        path: also `package:examples/x.toml`.

    Raises:
        SpecError: with every problem found.
    """
    with registry.blaming():
        path = _found(path)
        return _Loader(path, *layers.load_what_fits(path, sets), registry).rewards()


class _Loader:
    def __init__(
        self,
        path: Path,
        root: Node,
        problems: Sequence[Problem],
        registry: Registry,
        also: Sequence[Rule] = (),
        moved: bool = False,
    ) -> None:
        self.path, self.root, self.registry, self.also = path, root, registry, also
        self.reader = Reader(_homes(), moved)
        self.reader.problems += problems
        self.named = Named(root, registry, self.reader)

    def spec(self) -> tuple[Spec, Sequence[Problem]]:
        """The spec, and notes on it."""
        self.reader.unknown_keys(self.root, TOP, WHOLE)
        self.named.requires()
        parts: dict[str, Any] = {"plugins": self.named.plugins()}
        parts |= {name: self._component(name, kind) for name, kind in COMPONENTS.items()}
        parts |= {name: self._table(name) for name in TABLES if name not in ("eval", "lora", "full")}
        parts |= {name: self._table(name) for name in ("lora", "full") if self.root.at(name) is not None}
        parts["tuning"] = self._tuning(parts)
        reward = self.root.at("reward")  # whether there must be one, the trainer says
        parts["rewards"] = self._absent(()) if reward is None else self._rewards(reward, "[[reward]]")
        parts["eval"] = self._eval()
        sound = {name: part for name, part in parts.items() if part is not None}
        notes = self._check(sound)
        return Spec(**{name: part for name, part in sound.items() if name not in ("lora", "full")}), notes

    def rewards(self) -> tuple[RewardEntry, ...]:
        self.named.requires()
        self.named.plugins()
        found = self._rewards(self.root.at("reward"), "[[reward]]")
        self._check({} if found is None else {"rewards": found})
        assert found is not None, "what is missing is a problem"
        return found

    def _check(self, parts: Mapping[str, Any]) -> Sequence[Problem]:
        """What must hold between parts; raises if anything at all is wrong, else returns notes."""
        where = Where(self.root, self.registry, whole=not self.reader.problems)
        self.reader.problems += broken(where, parts, (*RULES, *self.also))
        found = sorted(self.reader.problems, key=_reading_order)
        if wrong := [problem for problem in found if problem.code]:
            raise SpecError(wrong)
        return found

    def _table(self, name: str) -> Any:
        """A core table; its defaults when absent and nothing is required."""
        node, cls = self.root.at(name), TABLES[name]
        if node is not None:
            return self.reader.table(node, cls, f"[{name}]")
        required = [f"`{key}`" for key, field in keys(cls).items() if field.default is attrs.NOTHING]
        required = ["`prompts`"] if cls is Data else required  # or `source`, in their place
        return self._missing(f"[{name}]", required) if required else self._absent(cls())

    def _missing(self, title: str, required: Sequence[str]) -> None:
        if self.root.whole:
            self.reader.note("missing-table", f"{title} is missing; it needs {', '.join(required)}", self.root.place)

    def _absent(self, default: T) -> T | None:
        """What stands for a table that is not there, unless it may be in what could not be read."""
        return default if self.root.whole else None

    def _tuning(self, parts: Mapping[str, Any]) -> Lora | Full | None:
        lora, full = self.root.at("lora"), self.root.at("full")
        if lora is not None and full is not None:
            what = "[lora] and [full] exclude each other: train LoRA or all weights"
            self.reader.note("two-tunings", what, self._later(lora, full).key, "remove one of them, or `--unset` it")
            return None
        if lora is None and full is None and not self.root.whole:
            return None
        if lora is None and full is None:
            what = "what to train is missing: [lora] for LoRA, or [full] for all weights"
            self.reader.note("no-tuning", what, self.root.place)
            return None
        found: Lora | Full | None = parts["lora" if full is None else "full"]
        return found

    def _later(self, one: Node, other: Node) -> Node:
        """That of two tables which was probably written last: in the spec itself, or further down in it."""
        return max(one, other, key=lambda node: (node.key.file is None, node.key.file == self.path, node.key.line))

    def _component(self, name: str, kind: str) -> Component | None:
        node, title = self.root.at(name), f"[{name}]"
        if node is None:
            self._missing(title, ["`name`"])
            return None
        own = self.named.table(node, kind, title, ())
        return None if own is None else Component(name=node.value["name"].value, spec=own)

    def _rewards(self, node: Node | None, title: str) -> tuple[RewardEntry, ...] | None:
        if node is None:
            self._missing(title, ["`name`"])
            return None
        if not node.is_array or not all(child.is_table for child in node.value):
            self.reader.note("not-an-array", f"rewards are an array of tables, each headed {title}", node.key)
        if not node.is_array:
            return None
        found = (self._reward(child, title) if child.is_table else None for child in node.value)
        return tuple(UNSOUND if entry is None else entry for entry in found)

    def _reward(self, node: Node, title: str) -> RewardEntry | None:
        core = [key for key in keys(RewardEntry) if key not in ("name", "spec")]
        own = self.named.table(node, "rewards", title, core)
        name = node.at("name")
        given: dict[str, Any] = {"name": FAILED, "spec": FAILED if own is None else own}
        if name is not None and isinstance(name.value, str):
            given["name"] = name.value
            if "label" not in node.value:
                given["label"] = name.value.partition("@")[0]
        elif "label" not in node.value:
            given["label"] = FAILED
        return self.reader.table(node.only(*core), RewardEntry, title, given)

    def _eval(self) -> Eval | None:
        node = self.root.at("eval")
        if node is None:
            return self._absent(Eval())
        if not node.is_table:
            self.reader.not_a_table(node, "[eval]")
            return None
        reward = node.at("reward")
        rewards = self._absent(()) if reward is None else self._rewards(reward, "[[eval.reward]]")
        given = {"rewards": FAILED if rewards is None else rewards}
        return self.reader.table(node, Eval, "[eval]", given, known=("reward",))


def _homes() -> Mapping[str, Sequence[str]]:
    """The tables of each of core's keys, for keys that are written into another."""
    homes: dict[str, list[str]] = {}
    for title, cls in [*((f"[{name}]", cls) for name, cls in TABLES.items()), ("[[reward]]", RewardEntry)]:
        for name in keys(cls):
            if name not in ("name", "spec", "rewards"):
                homes.setdefault(name, []).append(title)
    return {"share": ["[[data.source]]"], **homes}


def _reading_order(problem: Problem) -> tuple[bool, str, int, int]:
    place = problem.place
    if place is None or place.file is None:
        return True, "", 0, 0
    return False, str(place.file), place.line or 1 << 30, place.column
