"""The training loop: sample, score, compare, update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flowfactory.contracts.hooks import Display, Run, Tracker
from flowfactory.discovery.components import Components
from flowfactory.errors import RunError, shown
from flowfactory.metrics import merit
from flowfactory.metrics.merit import Merit
from flowfactory.metrics.table import MetricsFile, read_lines
from flowfactory.metrics.track import tracking
from flowfactory.metrics.watch import Watch
from flowfactory.plan import launch
from flowfactory.plan.estimate import estimate, readable
from flowfactory.plan.plan import Plan
from flowfactory.processes.distributed import PeerLost
from flowfactory.processes.stop import Stopped, StopRequest, listening
from flowfactory.rewards.failures import cut_back
from flowfactory.rewards.scoring import RewardError
from flowfactory.runs import archive, checkpoint, resumption
from flowfactory.runs.archive import CHECKPOINTS
from flowfactory.runs.checkpoint import Progress
from flowfactory.training.assembly import Parts, assemble
from flowfactory.training.evaluate import BEFORE_AFTER, evaluate
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
        with listening() as stop:
            train(assemble(plan, components, folder, display), stop, resume)
        outcome = "done"
    except Stopped as stopped:
        outcome = stopped.outcome
        raise
    finally:
        components.events.run_finished(run=told, outcome=outcome)


def train(parts: Parts, stop: StopRequest, resume: bool) -> None:
    """Every epoch still to be done."""
    run, progress, learner, evaluator = parts.run, Progress(), parts.learner, parts.evaluator
    spec = learner.spec
    saved = archive.checkpoints(run.folder / CHECKPOINTS) if resume else []
    if saved:
        with said_once():
            progress = checkpoint.load(saved[-1], learner.weights, learner.optimizer, learner.trainer)
    if parts.processes.main:
        cut_back(run.folder, progress.epoch)
    file = MetricsFile(run.folder / METRICS, progress.epoch, write=parts.processes.main)
    best = best_saved(parts, file, saved)
    names = spec.track.to if parts.processes.main else ()
    with tracking(names, spec.track.project, run, parts.events) as trackers:
        trackers.append(file)
        if parts.processes.main:
            prompts, left_out = (len(evaluator.conditions.rows), evaluator.judge.left_out) if evaluator else (0, ())
            trackers.append(Watch(spec, prompts, file.lines(), left_out))
        parts.events.run_started(run=run, plan=run.plan)
        if progress.epoch == 0:
            report(parts, trackers, 0, evaluate(evaluator, 0) if evaluator else {})
        for epoch in range(progress.epoch + 1, spec.run.epochs + 1):
            try:
                made = parts.source.collect(epoch, stop)
            except (Stopped, RewardError):
                # No weight has changed since the last epoch ended: this is its checkpoint.
                save(parts, progress, best)
                raise
            progress, metrics = optimise(learner, progress, epoch, made)
            last = epoch == spec.run.epochs
            if evaluator and (last or (spec.eval.every and epoch % spec.eval.every == 0)):
                try:
                    metrics |= evaluate(evaluator, epoch)
                except RewardError:
                    report(parts, trackers, epoch, made.metrics | metrics)
                    save(parts, progress, best)
                    raise
            now = merit.judge(spec, epoch, metrics)
            if improved := now is not None and now.exceeds(best):
                best = now
            # First the line, then the checkpoint: a run killed in between makes the line again, none is missing.
            report(parts, trackers, epoch, made.metrics | metrics)
            if last or improved or (spec.checkpoint.every and epoch % spec.checkpoint.every == 0):
                save(parts, progress, best)


@contextmanager
def said_once() -> Iterator[None]:
    """What every process finds wrong is said by the main one."""
    try:
        yield
    except RunError as error:
        raise error if launch.rank() == 0 else PeerLost(str(error)) from error


def best_saved(parts: Parts, file: MetricsFile, saved: Sequence[Path]) -> Merit | None:
    """The best evaluation whose checkpoint lies there, the same on every process."""
    epochs = {archive.epoch_of(path) for path in saved}
    lines = [(int(line["epoch"]), line) for line in (file.lines() if parts.processes.main else [])]
    own = merit.best(parts.learner.spec, [(epoch, line) for epoch, line in lines if epoch in epochs])
    found: Merit | None = parts.processes.gather_objects([own])[0]
    return found


def report(parts: Parts, trackers: Sequence[Tracker], epoch: int, metrics: dict[str, float]) -> None:
    """Put the metrics of an epoch where people look."""
    instruments = parts.instruments
    metrics = metrics | instruments.clock.read() | instruments.stopwatch.read()
    for tracker in trackers:
        tracker.log(metrics, epoch)
    instruments.display.epoch_line(epoch, parts.learner.spec.run.epochs, metrics)
    parts.events.epoch_finished(run=parts.run, epoch=epoch, metrics=metrics)


def save(parts: Parts, progress: Progress, best: Merit | None) -> None:
    """Write a checkpoint of a finished epoch, unless it lies there already; the latest are kept, and the best."""
    folder, main, learner = parts.run.folder / CHECKPOINTS, parts.processes.main, parts.learner
    lies_there = archive.name(progress.epoch) in [c.name for c in archive.checkpoints(folder)]
    if parts.processes.any(main and not lies_there):
        with parts.instruments.clock("checkpoint"):
            kept = learner.weights, learner.optimizer, learner.trainer
            path = checkpoint.save(folder, progress, *kept, parts.origin, write=main)
        if main:
            archive.tidy(folder, learner.spec.checkpoint.keep, best.epoch if best else None)
            parts.events.checkpoint_saved(run=parts.run, epoch=progress.epoch, path=path)
    parts.processes.wait()


def closing_words(plan: Plan, folder: Path) -> str:
    """What became of a finished run, and what to do next."""
    lines = read_lines(folder / METRICS)
    means = [name for name in lines[-1] if name.startswith("eval/") and name.endswith("/mean")]
    words = [
        f"held-out {name.split('/')[1]}: {lines[0][name]:.3f} before, {lines[-1][name]:.3f} after"
        for name in means
        if name in lines[0]
    ]
    if (sheet := folder / BEFORE_AFTER).exists():
        words.append(f"the same prompts and noise before and after: {shown(sheet)}")
    next_step = (
        f"next: flowfactory report {shown(folder)}, to look at it; "
        f"flowfactory export {shown(folder)}, to take the weights along"
    )
    return "\n".join([*words, *compared(plan, lines), f"done; the run is in {shown(folder)}", next_step])


def compared(plan: Plan, lines: Sequence[Mapping[str, float]]) -> list[str]:
    """Memory by phase as planned and as measured at its peak, in a line; none where nothing could be planned."""
    pairs = []
    for need in estimate(plan.spec, plan.world).phases:
        peak = max((line[name] for line in lines if (name := f"memory/{need.name}") in line), default=None)
        if peak is not None:
            pairs.append(f"{need.name} {readable(need.bytes)}, {readable(int(peak))}")
    return [f"memory, planned and measured: {'; '.join(pairs)}"] if pairs else []
