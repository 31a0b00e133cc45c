"""What plugins say of themselves in metadata: kinds, entry points and their distributions. No plugin code runs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import attrs
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from flowfactory.contracts.hooks import PROJECT, Provides
from flowfactory.contracts.specs import AdapterSpec, SchedulerSpec, TrainerSpec


@attrs.frozen
class Kind:
    """One kind of thing a plugin can contribute.

    plural: as in the group `flowfactory.adapters` and the hook `flowfactory_adapters`. key: how a spec names one.
    base: what its spec class extends. contracts: what its target is.
    reserved: keys of its table that are core's.
    """

    name: str
    plural: str
    key: str
    base: type
    contracts: tuple[str, ...]
    reserved: frozenset[str] = frozenset({"name"})

    @property
    def group(self) -> str:
        """The entry-point group."""
        return f"{PROJECT}.{self.plural}"

    @property
    def hook(self) -> str:
        """The contribution hook."""
        return f"{PROJECT}_{self.plural}"


OF_REWARDS = frozenset({
    "name", "label", "weight", "on_error", "retries", "retry_pause", "max_dropped", "timeout", "workers",
    "micro_batch", "device", "dtype", "offload", "sources",
})  # fmt: skip
"""Keys of a `[[reward]]` table that are core's (`spec.tables.RewardEntry`)."""

KINDS: Mapping[str, Kind] = {
    kind.plural: kind
    for kind in (
        Kind("adapter", "adapters", "[model] name", AdapterSpec, ("flowfactory.contracts.adapter:Adapter",)),
        Kind(
            "scheduler", "schedulers", "[scheduler] name", SchedulerSpec,
            ("flowfactory.contracts.scheduler:Scheduler",),
        ),
        Kind("trainer", "trainers", "[trainer] name", TrainerSpec, ("flowfactory.contracts.trainer:Trainer",)),
        Kind(
            "reward", "rewards", "[[reward]] name", object, ("flowfactory.contracts.reward:Reward",),
            OF_REWARDS,
        ),
    )
}  # fmt: skip
OBSERVERS = "plugins"
GROUPS = {f"{PROJECT}.{plural}": plural for plural in (*KINDS, OBSERVERS)}


@attrs.frozen
class Source:
    """Who contributes: an installed distribution, or a local file with its content's hash as the version."""

    name: str
    version: str

    def answers_to(self, wanted: str) -> bool:
        """Whether `wanted` in `name@wanted` means this source."""
        return canonicalize_name(self.name) == canonicalize_name(wanted)

    @property
    def is_file(self) -> bool:
        """Whether it is a local file."""
        return self.version.startswith("sha256:")

    def __str__(self) -> str:
        return self.name if self.is_file else f"{self.name} {self.version}"


@attrs.frozen
class Entry:
    """An entry point, as metadata has it. `kind` is plural: `adapters`, …, or `plugins` for observers.

    damage: what is wrong with the metadata of its distribution; empty when nothing is.
    """

    kind: str
    name: str
    module: str
    source: Source
    requires: tuple[str, ...] = ()
    damage: str = ""

    @property
    def title(self) -> str:
        """For messages: trainer `grpo` (flowfactory-plugin-grpo 0.1.0)."""
        return f"{noun(self.kind)} `{self.name}` ({self.source})"


@attrs.frozen
class Contribution:
    """One named thing whose hook module is loaded."""

    kind: str
    provides: Provides
    source: Source

    @property
    def title(self) -> str:
        """For messages: trainer `grpo` (flowfactory-plugin-grpo 0.1.0)."""
        return f"{noun(self.kind)} `{self.provides.name}` ({self.source})"


def noun(kind: str) -> str:
    """What one of a kind is called."""
    return KINDS[kind].name if kind in KINDS else "observer"


@attrs.frozen
class Point:
    """One line of a distribution's entry points. value: empty where the line is malformed, and `name` all of it."""

    group: str
    name: str
    value: str


def installed_entries() -> Sequence[Entry]:
    """Every entry point of every installed plugin. No plugin code runs."""
    return sorted(_entries(), key=lambda entry: (entry.kind, entry.name, entry.source.name))


def _entries() -> Iterator[Entry]:
    for points, source, requires, damage in installed_points(GROUPS):
        for point in points:
            wrong = damage if point.value else f"its entry_points.txt has the malformed line {point.name[:80]!r}"
            yield Entry(GROUPS[point.group], point.name, point.value, source, requires, wrong)


def installed_points(
    groups: Container[str],
) -> Iterator[tuple[Sequence[Point], Source, tuple[str, ...], str]]:
    """The entry points in some groups, with their distribution, what it requires, and what is wrong with its metadata.

    `importlib.metadata.entry_points` raises where one distribution's metadata is damaged, whoever's it is.
    """
    seen = set()
    for distribution in importlib.metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, ValueError):
            continue
        points = [point for point in _points(text) if point.group in groups] if PROJECT in text else []
        if points:
            source, requires, damage = _origin(distribution)
            if canonicalize_name(source.name) not in seen:  # of two with a name, Python imports the first
                seen.add(canonicalize_name(source.name))
                yield points, source, requires, damage


def _points(text: str) -> Iterator[Point]:
    group = ""
    for line in map(str.strip, text.split("\n")):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and not line.startswith(("#", ";")):
            name, _, value = (part.strip() for part in line.partition("="))
            yield Point(group, name, value) if name and value else Point(group, line, "")


def _origin(distribution: importlib.metadata.Distribution) -> tuple[Source, tuple[str, ...], str]:
    """A distribution's name, version and sound requirements, and what is wrong with its metadata, if anything is."""
    try:
        metadata: Any = distribution.metadata or {}
    except (OSError, ValueError):  # it is no text
        metadata = {}
    folder = vars(distribution).get("_path", "")  # there is no public way to say where it lies
    name, version = (*str(folder).rpartition("/")[2].rpartition(".")[0].split("-", 1), "", "")[:2]
    requires = tuple(metadata.get_all("Requires-Dist") or ()) if metadata else ()
    unsound = [text for text in requires if not _is_requirement(text)]
    damage = f"its metadata has the malformed requirement {unsound[0][:80]!r}" if unsound else ""
    if not (metadata.get("Name") and metadata.get("Version")):
        damage = f"{folder} has no METADATA that tells its name and version"
    source = Source(metadata.get("Name") or name or "unknown", metadata.get("Version") or version or "unknown")
    return source, tuple(text for text in requires if text not in unsound), damage


def _is_requirement(text: str) -> bool:
    try:
        Requirement(text)
    except InvalidRequirement:
        return False
    return True
