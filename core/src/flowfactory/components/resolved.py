"""What one spec names, resolved once: from here on nobody looks a name up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs
import pluggy

from flowfactory.calling import calling
from flowfactory.contracts.hooks import Run, Tracker
from flowfactory.discovery.entries import KINDS, Contribution, Source
from flowfactory.discovery.registry import Registry
from flowfactory.errors import PluginError

log = logging.getLogger("flowfactory")

Target = Callable[..., Any]


class Events:
    """Tells loaded plugins what happens. Each has copies of its own; what one raises is logged and stops nothing.

    Args:
        sources: who contributes each registered module, by its name.
    """

    def __init__(self, manager: pluggy.PluginManager, sources: Mapping[str, Source]) -> None:
        self._manager, self._sources = manager, sources

    def run_started(self, *, run: Run, plan: Any) -> None:
        """Tell `flowfactory_run_started`."""
        self._tell("flowfactory_run_started", run=run, plan=plan)

    def samples_scored(self, *, run: Run, epoch: int, samples: Any, scores: Any) -> None:
        """Tell `flowfactory_samples_scored`."""
        self._tell("flowfactory_samples_scored", run=run, epoch=epoch, samples=samples, scores=scores)

    def epoch_finished(self, *, run: Run, epoch: int, metrics: Any) -> None:
        """Tell `flowfactory_epoch_finished`."""
        self._tell("flowfactory_epoch_finished", run=run, epoch=epoch, metrics=metrics)

    def checkpoint_saved(self, *, run: Run, epoch: int, path: Path) -> None:
        """Tell `flowfactory_checkpoint_saved`."""
        self._tell("flowfactory_checkpoint_saved", run=run, epoch=epoch, path=path)

    def run_finished(self, *, run: Run, outcome: str) -> None:
        """Tell `flowfactory_run_finished`."""
        self._tell("flowfactory_run_finished", run=run, outcome=outcome)

    def tracker(self, name: str, run: Run) -> Tracker | None:
        """The tracker a loaded plugin has for `name`, or `None`."""
        found: Tracker | None = self._manager.hook.flowfactory_tracker(name=name, run=run)
        return found

    def _tell(self, hook: str, **what: Any) -> None:
        hooked = {implementation.plugin_name for implementation in getattr(self._manager.hook, hook).get_hookimpls()}
        for name, plugin in self._manager.list_name_plugin():
            if name not in hooked:
                continue
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            who = f"plugin {self._sources[name]}"
            try:
                with calling(who, alone=True):
                    self._manager.subset_hook_caller(hook, others)(**deepcopy(what))
            except Exception:
                log.exception("%s failed in %s; the run goes on", who, hook)


@attrs.frozen(eq=False)
class Components:
    """The implementations that a run is made of, each called as `target(spec)`, and who is told what happens.

    rewards: by the names that the spec uses. source: the distribution of the adapter.
    """

    adapter: Target
    source: Source
    scheduler: Target
    trainer: Target
    rewards: Mapping[str, Target]
    events: Events


def components(registry: Registry, adapter: str, scheduler: str, trainer: str, rewards: Iterable[str]) -> Components:
    """Import what the names of a spec stand for.

    Raises:
        PluginError: one cannot be imported, is not there, or is not what its kind requires.
    """
    return Components(
        registry.target("adapters", adapter),
        registry.find("adapters", adapter).source,
        registry.target("schedulers", scheduler),
        registry.target("trainers", trainer),
        {name: registry.target("rewards", name) for name in dict.fromkeys(rewards)},
        Events(*registry.observers()),
    )


def contributions(registry: Registry) -> tuple[Mapping[str, Sequence[Contribution]], Sequence[PluginError]]:
    """Everything installed that loads, by kind, and the errors of what does not."""
    offers: dict[str, list[Contribution]] = {kind: [] for kind in KINDS}
    broken = []
    for entry in registry.entries():
        if entry.kind in KINDS:
            try:
                offers[entry.kind].append(registry.find(entry.kind, f"{entry.name}@{entry.source.name}"))
            except PluginError as error:
                broken.append(error)
    return offers, broken
