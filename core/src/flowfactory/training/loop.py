"""The training loop: sample, score, compare, update."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from flowfactory.components.resolved import Components
from flowfactory.contracts.hooks import Run, Tracker
from flowfactory.data.sources import counted
from flowfactory.errors import RunError, shown, typed
from flowfactory.metrics import merit
from flowfactory.metrics.display import Display
from flowfactory.metrics.merit import Merit
from flowfactory.metrics.table import MetricsFile, read_lines
from flowfactory.metrics.track import tracking
from flowfactory.metrics.watch import Watch
from flowfactory.plan.estimate import estimate
from flowfactory.plan.plan import Plan
from flowfactory.plan.working import readable
from flowfactory.processes import launch
from flowfactory.processes.distributed import PeerLost, Processes
from flowfactory.processes.stop import AtOnce, Stopped, StopRequest, listening
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.failures import cut_back
from flowfactory.runs import archive, checkpoint, resumption
from flowfactory.runs import folder as folders
from flowfactory.runs.archive import CHECKPOINTS
from flowfactory.runs.checkpoint import Progress
from flowfactory.spec.tables import Spec
from flowfactory.training.assembly import Parts, assemble
from flowfactory.training.encoding import load_model
from flowfactory.training.evaluate import BEFORE_AFTER, evaluate
from flowfactory.training.keeping import Finished, finished, keeping, save
from flowfactory.training.optimise import optimise

METRICS = "metrics.jsonl"


def run(plan: Plan, components: Components, folder: Path, display: Display, resume: bool = False) -> None:
    """Train as planned, writing into `folder`; with `resume`, from the last checkpoint there.

    Raises:
        Stopped: a signal ended the run; a checkpoint was saved.
        DataError: a prompt file cannot be used.
        RewardError: a reward failed.
        RunError: the last checkpoint is damaged or of another spec; or something cannot be written.
    """
    told, outcome = Run(folder, plan), "failed"
    try:
        if resume:
            with said_once():
                for difference in resumption.differences(folder, plan):
                    display.say(difference)
        processes = Processes(plan.spec.run.precision, plan.spec.memory)  # accelerate's trackers ask for them
        with listening() as stop, trackers_of(plan, told, components) as trackers:
            saved = archive.checkpoints(folder / CHECKPOINTS) if resume else []
            done = archive.epoch_of(saved[-1]) if saved else 0
            parts = assemble(plan, components, folder, display, processes, load_model, stop, done)
            with stop.deferred():
                train(parts, stop, saved, trackers)
        outcome = "done"
    except Stopped as stopped:
        outcome = stopped.outcome
        raise
    finally:
        components.events.run_finished(run=told, outcome=outcome)


@contextmanager
def trackers_of(plan: Plan, run: Run, components: Components) -> Iterator[list[Tracker]]:
    """The trackers of the main process. They start before the model is loaded: what is wrong with one is said then."""
    names = plan.spec.track.to if launch.rank() == 0 else ()
    with tracking(names, plan.spec.track.project, run, components.events) as trackers:
        yield trackers


def train(parts: Parts, stop: StopRequest, saved: Sequence[Path], trackers: list[Tracker]) -> None:
    """Every epoch still to be done."""
    run, progress, learner, evaluator = parts.run, Progress(), parts.learner, parts.evaluator
    spec, processes = learner.spec, parts.processes
    if saved:
        with said_once():
            progress = checkpoint.load(saved[-1], learner.weights, learner.optimizers, learner.trainer)
    with said_once():
        file = MetricsFile(run.folder / METRICS, progress.epoch, write=processes.main)
        best = best_saved(parts, file, saved)
        if processes.main:
            cut_back(run.folder, progress.epoch)
    half = take_back(parts, file, progress)
    trackers.append(file)
    if processes.main:
        held_out, left_out = (evaluator.conditions.rows, evaluator.judge.left_out) if evaluator else ((), ())
        trackers.append(Watch(spec, counted(held_out), file.lines(), left_out))
    parts.events.run_started(run=run, plan=run.plan)
    if progress.epoch == 0 or half:
        best = conclude(parts, trackers, progress, half, best, stop)
    for epoch in range(progress.epoch + 1, spec.run.epochs + 1):
        with keeping(parts, finished(parts, progress, best)):
            parts.encode(epoch)
            made = parts.source.collect(epoch, stop)
            progress, metrics = optimise(learner, progress, epoch, made, stop)
        best = conclude(parts, trackers, progress, made.metrics | metrics, best, stop)


def conclude(
    parts: Parts,
    trackers: Sequence[Tracker],
    progress: Progress,
    metrics: dict[str, float],
    best: Merit | None,
    stop: StopRequest,
) -> Merit | None:
    """The end of an epoch: evaluate, report, save where it is time for it; returns the best evaluation so far.

    Whoever ends while evaluating leaves the checkpoint of this epoch, and its line without the evaluation, which is
    made when the run goes on.
    """
    spec, epoch = parts.learner.spec, progress.epoch
    last = epoch == spec.run.epochs
    with keeping(parts, Finished(progress, best, begun=epoch > 0)):
        with said_of_all(parts):
            folders.still(parts.run.folder)
        own = evaluated(parts, trackers, epoch, metrics, stop)
        now = merit.judge(spec, epoch, own) if epoch else None
        if improved := now is not None and now.exceeds(best):
            best = now
        # First the line, then the checkpoint: a run killed in between makes the line again, none is missing.
        report(parts, trackers, epoch, metrics | own)
    if epoch and (last or improved or (spec.checkpoint.every and epoch % spec.checkpoint.every == 0)):
        save(parts, progress, best)
    return best


def evaluated(
    parts: Parts, trackers: Sequence[Tracker], epoch: int, metrics: dict[str, float], stop: StopRequest
) -> dict[str, float]:
    """The metrics of evaluating, where it is time for it; if that fails, those of the epoch are put down without."""
    if not parts.evaluator or not due(parts.learner.spec, epoch):
        return {}
    try:
        return evaluate(parts.evaluator, epoch, stop)
    except RewardError:
        if epoch:
            report(parts, trackers, epoch, metrics)
        raise
    except AtOnce:
        raise
    except BaseException:
        if epoch:
            file = next(tracker for tracker in trackers if isinstance(tracker, MetricsFile))
            file.log(measured(parts, metrics), epoch)
        raise


def due(spec: Spec, epoch: int) -> bool:
    """Whether an epoch is evaluated: the start, the end, and as often as `[eval]` says."""
    return epoch in (0, spec.run.epochs) or (spec.eval.every > 0 and epoch % spec.eval.every == 0)


def take_back(parts: Parts, file: MetricsFile, progress: Progress) -> dict[str, float]:
    """The line of the last epoch where it lacks its evaluation, taken out of the file; the same on every process."""
    spec, epoch = parts.learner.spec, progress.epoch
    line = file.take_back(epoch) if epoch and parts.evaluator and due(spec, epoch) and parts.processes.main else None
    found: dict[str, float] = parts.processes.gather_objects([line or {}])[0]
    return found


@contextmanager
def said_once() -> Iterator[None]:
    """What every process finds wrong is said by the main one."""
    try:
        yield
    except RunError as error:
        raise error if launch.rank() == 0 else PeerLost(str(error)) from error


@contextmanager
def said_of_all(parts: Parts) -> Iterator[None]:
    """What the main process finds wrong ends all."""
    error: RunError | None = None
    try:
        yield
    except RunError as own:
        error = own
    parts.processes.go_on_unless(error if parts.processes.main else None)


def best_saved(parts: Parts, file: MetricsFile, saved: Sequence[Path]) -> Merit | None:
    """The best evaluation whose checkpoint lies there, the same on every process."""
    epochs = {archive.epoch_of(path) for path in saved}
    lines = [(int(line["epoch"]), line) for line in (file.lines() if parts.processes.main else [])]
    own = merit.best(parts.learner.spec, [(epoch, line) for epoch, line in lines if epoch in epochs])
    found: Merit | None = parts.processes.gather_objects([own])[0]
    return found


def report(parts: Parts, trackers: Sequence[Tracker], epoch: int, metrics: dict[str, float]) -> None:
    """Put the metrics of an epoch where people look."""
    metrics = measured(parts, metrics)
    for tracker in trackers:
        tracker.log(metrics, epoch)
    spec = parts.learner.spec
    parts.instruments.display.epoch_line(epoch, spec.run.epochs, metrics, merit.watched(spec))
    parts.events.epoch_finished(run=parts.run, epoch=epoch, metrics=metrics)


def measured(parts: Parts, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of an epoch with what it took."""
    return metrics | parts.instruments.clock.read() | parts.instruments.stopwatch.read()


def closing_words(plan: Plan, folder: Path) -> str:
    """What became of a finished run, and what to do next."""
    lines = read_lines(folder / METRICS)
    first, last = (lines[0], lines[-1]) if lines else ({}, {})
    means = [name for name in last if re.fullmatch("eval/[^/]+/mean", name)]
    total = [name for name in ("eval/score",) if name in last and [last[mean] for mean in means] != [last[name]]]
    only = {f"{name}/mean": " (watched only)" for name in merit.watched(plan.spec)}
    words = [
        f"held-out {name.split('/')[1]}{only.get(name, '')}: {first[name]:.3f} before, {last[name]:.3f} after"
        for name in [*total, *means]
        if name in first
    ]
    if (sheet := folder / BEFORE_AFTER).exists():
        words.append(f"the same prompts and noise before and after: {shown(sheet)}")
    at = typed(folder)
    next_step = f"next: flowfactory report {at}, to look at it; flowfactory export {at}, to take the weights along"
    return "\n".join([*words, *compared(plan, lines), f"done; the run is in {shown(folder)}", next_step])


def compared(plan: Plan, lines: Sequence[Mapping[str, float]]) -> list[str]:
    """Memory by phase as planned and as measured at its peak, in a line; none where nothing could be planned, and on
    CPUs, whose main memory holds much else that no plan counts."""
    pairs: list[str] = []
    if not torch.accelerator.is_available():
        return pairs
    for need in estimate(plan.spec, plan.world).phases:
        peak = max((line[name] for line in lines if (name := f"memory/{need.name}") in line), default=None)
        if peak is not None:
            pairs.append(f"{need.name} {readable(need.bytes)}, {readable(int(peak))}")
    return [f"memory, planned and measured: {'; '.join(pairs)}"] if pairs else []
