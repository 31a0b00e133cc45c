"""What a plugin can tell flowfactory: the hook specifications and the records they carry.

Contribution hooks take no arguments and yield `Provides`; their order never matters.
Event hooks only observe: their return value is ignored, and an exception is logged with the plugin's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import pluggy

if TYPE_CHECKING:
    from flowfactory.contracts.types import Sample

PROJECT = "flowfactory"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@attrs.frozen
class Provides:
    """One named thing a plugin contributes.

    name: the public name, equal to the entry point's.
    spec: the attrs class of the keys its table takes; never imports torch.
    target: `"module:attribute"`, imported only when a run needs it, or the object itself in a local plugin file.
        It is called as `target(spec)`. For a reward it may also be a bare function `samples -> scores`.
    summary: one line for `flowfactory plugins`.
    """

    name: str
    spec: type
    target: str | Callable[..., Any]
    summary: str


class Plan(Protocol):
    """What will run, as observers see it: `plan["samples"]` is one of its numbers, `spec` the whole spec.

    world: number of processes. digest: sha256 of what decides the results. versions: of core and of the plugins in use.
    """

    @property
    def spec(self) -> Any: ...
    @property
    def world(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def versions(self) -> Mapping[str, str]: ...

    def __getitem__(self, name: str) -> int: ...

    def as_json(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        ...


@attrs.frozen(eq=False)
class Run:
    """A run, as observers see it: the absolute path of its folder, and its plan."""

    folder: Path
    plan: Plan


class Tracker(Protocol):
    """What `flowfactory_tracker` returns."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of one epoch."""

    def finish(self) -> None:
        """The run is over."""


@hookspec
def flowfactory_adapters() -> Iterable[Provides]:
    """Model families. `spec` extends `flowfactory.AdapterSpec`, `target` is an `Adapter`."""
    return ()


@hookspec
def flowfactory_trainers() -> Iterable[Provides]:
    """Algorithms. `spec` extends `flowfactory.TrainerSpec`, `target` is a `Trainer`."""
    return ()


@hookspec
def flowfactory_rewards() -> Iterable[Provides]:
    """Rewards. `spec` is any attrs class, `target` a `Reward`, a `GroupReward` or a function `samples -> scores`."""
    return ()


@hookspec
def flowfactory_schedulers() -> Iterable[Provides]:
    """Sampling dynamics. `spec` extends `flowfactory.SchedulerSpec`, `target` is a `Scheduler`."""
    return ()


@hookspec(firstresult=True)
def flowfactory_tracker(name: str, run: Run) -> Tracker | None:
    """A tracker for a name in `[track] to` that accelerate does not know; the first one returned is used."""


@hookspec
def flowfactory_run_started(run: Run, plan: Plan) -> None:
    """The plan is final, weights are loaded, prompts are encoded; the first epoch begins next."""


@hookspec
def flowfactory_samples_scored(
    run: Run, epoch: int, samples: Sequence[Sample], scores: Mapping[str, Sequence[float]]
) -> None:
    """An epoch is scored; `samples` are those that are kept (`[run] save_samples`). Main process only.

    `scores` has their scores by reward label, and parts by `label/part`; NaN where a reward does not apply or failed.
    The metrics of `flowfactory_epoch_finished` cover all samples.
    """


@hookspec
def flowfactory_epoch_finished(run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
    """An epoch is over; `metrics` is the line just written to `metrics.jsonl`."""


@hookspec
def flowfactory_checkpoint_saved(run: Run, epoch: int, path: Path) -> None:
    """A complete checkpoint is at `path`."""


@hookspec
def flowfactory_run_finished(run: Run, outcome: str) -> None:
    """The run is over: `outcome` is "done", "failed", "terminated" or "interrupted". Always called."""
