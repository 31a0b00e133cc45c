"""What plugins say of themselves in metadata: kinds, entry points and their distributions. No plugin code runs."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence

import attrs
from packaging.utils import canonicalize_name

from flowfactory.contracts.hooks import PROJECT, Provides
from flowfactory.contracts.specs import AdapterSpec, RewardEntry, SchedulerSpec, TrainerSpec


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
            frozenset(field.name for field in attrs.fields(RewardEntry)) - {"spec"},
        ),
    )
}  # fmt: skip
OBSERVERS = "plugins"
_GROUPS = {f"{PROJECT}.{plural}": plural for plural in (*KINDS, OBSERVERS)}


@attrs.frozen
class Source:
    """Who contributes: an installed distribution, or a local file with its content's hash as the version."""

    name: str
    version: str

    def answers_to(self, wanted: str) -> bool:
        """Whether `wanted` in `name@wanted` means this source."""
        return canonicalize_name(self.name) == canonicalize_name(wanted)

    def __str__(self) -> str:
        return self.name if self.version.startswith("sha256:") else f"{self.name} {self.version}"


@attrs.frozen
class Entry:
    """An entry point, as metadata has it. `kind` is plural: `adapters`, …, or `plugins` for observers."""

    kind: str
    name: str
    module: str
    source: Source
    requires: tuple[str, ...] = ()

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


def installed_entries() -> Sequence[Entry]:
    """Every entry point of every installed plugin. No plugin code runs."""
    entries = []
    everything, origin = importlib.metadata.entry_points(), functools.cache(_origin)
    for group, kind in _GROUPS.items():
        for point in everything.select(group=group):
            assert point.dist is not None, "entry points of the environment know their distribution"
            entries.append(Entry(kind, point.name, point.value, *origin(point.dist)))
    return sorted(entries, key=lambda entry: (entry.kind, entry.name, entry.source.name))


def _origin(distribution: importlib.metadata.Distribution) -> tuple[Source, tuple[str, ...]]:
    """A distribution's name, version and requirements; each reading of its metadata takes a millisecond."""
    metadata = distribution.metadata
    return Source(metadata["Name"], metadata["Version"]), tuple(metadata.get_all("Requires-Dist") or ())
