"""What will run: the spec, every number that follows from it with its reason, plugin versions and a digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from flowfactory.errors import SpecError
from flowfactory.plan.counts import Number, numbers
from flowfactory.spec import toml
from flowfactory.spec.holdings import by_content
from flowfactory.spec.kinds import attributes
from flowfactory.spec.rules.teams import unshared
from flowfactory.spec.tables import COMPONENTS, Lora, RewardEntry, Spec, unstructure

SPEC_FILE, PLAN_FILE = "spec.toml", "plan.json"

WITHOUT_EFFECT = (
    ("run", "name"),
    ("run", "save_samples"),
    ("sampling", "micro_batch"),
    ("optimizer", "micro_batch"),
    ("eval", "micro_batch"),
    ("memory",),
    ("checkpoint",),
    ("track",),
    ("plugins",),
)
"""What the digest leaves out: it changes where results go or how they are computed, but not what they are
(beyond the rounding of sums). Whatever else a spec says is part of the experiment, the number of epochs included."""


@attrs.frozen
class Plan:
    """What will run.

    world: number of processes. digest: sha256 of what decides the results; versions are kept beside it.
    versions: of core and of every plugin in use; a hash for local files.
    """

    spec: Spec
    world: int
    numbers: tuple[Number, ...]
    versions: Mapping[str, str]
    digest: str

    def __getitem__(self, name: str) -> int:
        return next(number.value for number in self.numbers if number.name == name)

    def as_json(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        return {
            "digest": self.digest,
            "world": self.world,
            "numbers": [attrs.asdict(number) for number in self.numbers],
            "versions": dict(self.versions),
            "spec": unstructure(self.spec),
        }

    def text(self) -> str:
        """`plan.json`."""
        return json.dumps(self.as_json(), indent=2) + "\n"

    def write(self, folder: Path) -> None:
        """`spec.toml`, complete and independent of where it came from, and `plan.json`; each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((SPEC_FILE, toml.dumps(unstructure(self.spec))), (PLAN_FILE, self.text())):
            partial = folder / f".writing-{name}"
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(folder / name)


def make_plan(spec: Spec, versions: Mapping[str, str], world: int = 1) -> Plan:
    """The plan for a spec on `world` processes.

    Args:
        versions: of core and of every plugin the spec uses (`Registry.versions`).

    Raises:
        SpecError: the groups of an update cannot be shared evenly among the processes.
    """
    if problems := list(unshared(world, spec.memory, spec.sampling.prompts, spec.optimizer.updates)):
        raise SpecError(problems)
    return Plan(spec, world, tuple(numbers(spec, world)), versions, digest_of(spec))


def digest_of(spec: Spec) -> str:
    """Sha256 of the canonical JSON of the spec, less what is `WITHOUT_EFFECT`, with files and folders by content."""
    data = unstructure(spec)
    for table, *key in WITHOUT_EFFECT:
        if not key:
            data.pop(table, None)
        elif table in data:
            data[table].pop(key[0], None)
    data["data"] = by_content(spec.data)
    for name in COMPONENTS:
        component = attributes(spec)[name]
        data[name] = {"name": component.name, **by_content(component.spec)}
    data["lora" if isinstance(spec.tuning, Lora) else "full"] = by_content(spec.tuning)
    data["reward"] = _rewards_by_content(data["reward"], spec.rewards)
    if spec.eval.rewards:
        data["eval"]["reward"] = _rewards_by_content(data["eval"]["reward"], spec.eval.rewards)
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _rewards_by_content(tables: Sequence[dict[str, Any]], entries: Sequence[RewardEntry]) -> list[dict[str, Any]]:
    return [{**table, **by_content(entry.spec)} for table, entry in zip(tables, entries, strict=True)]
