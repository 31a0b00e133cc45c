"""What a run keeps of the last finished epoch: in a checkpoint, and until then so that no end of the run loses it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import attrs
from torch import Tensor

from flowfactory.errors import Ending, RunError, said
from flowfactory.metrics.merit import Merit
from flowfactory.plan.counts import undoes
from flowfactory.policy.finite import Ruined
from flowfactory.processes.stop import AtOnce, Stopped
from flowfactory.runs import archive, checkpoint
from flowfactory.runs.archive import CHECKPOINTS
from flowfactory.runs.checkpoint import Progress
from flowfactory.training.assembly import Parts
from flowfactory.training.optimise import CURRENT

log = logging.getLogger("flowfactory")


@attrs.frozen(eq=False)
class Finished:
    """A finished epoch, whatever the next one has changed by then.

    remembered: what the trainer remembered; what it does now, where `None`.
    undo: puts everything back, and says whether it could.
    begun: whether there is anything to lose; else only a stop leaves a checkpoint.
    """

    progress: Progress
    best: Merit | None
    remembered: Mapping[str, Tensor] | None = None
    undo: Callable[[], bool] = lambda: True
    begun: bool = True


def finished(parts: Parts, progress: Progress, best: Merit | None) -> Finished:
    """The last epoch, before the next one begins.

    What that changes is copied by those who will write it, so that updates need not be finished: see `undoes`. Nothing
    is where a checkpoint lies there already.
    """
    learner, processes = parts.learner, parts.processes
    remembered = {name: tensor.clone() for name, tensor in learner.trainer.state().items()}
    if processes.any(processes.main and lies_there(parts, progress.epoch)):
        return Finished(progress, best, remembered)
    if not undoes(learner.spec):
        own = learner.optimizers[CURRENT]
        before = checkpoint.steps(own)
        return Finished(progress, best, remembered, lambda: checkpoint.steps(own) == before)
    if not (processes.main or processes.sharded):
        return Finished(progress, best, remembered)
    with parts.instruments.clock("checkpoint"):
        return Finished(progress, best, remembered, checkpoint.held(learner.weights, learner.optimizers))


@contextmanager
def keeping(parts: Parts, last: Finished) -> Iterator[None]:
    """Whatever ends the run meanwhile, a stop or a failure of any kind: a checkpoint of the `last` epoch is left.

    Where another process has failed, and this one writes, it does so alone; divided weights cannot be had without it.
    """
    try:
        yield
    except (AtOnce, Ruined):
        raise
    except BaseException as error:
        wanted = last.begun or isinstance(error, Stopped)
        together = parts.processes.world == 1 or (isinstance(error, RunError | Ending) and error.everywhere)
        if wanted and (together or (parts.processes.main and not parts.processes.sharded)):
            _leave(parts, last, error, together)
        raise


def _leave(parts: Parts, last: Finished, why: BaseException, together: bool) -> None:
    try:
        if last.undo():
            save(parts, last.progress, last.best, last.remembered, together)
    except Exception as error:
        if isinstance(why, Stopped):
            raise
        log.warning("epoch %d, the last finished one, could not be saved: %s", last.progress.epoch, said(error))


def save(
    parts: Parts,
    progress: Progress,
    best: Merit | None,
    remembered: Mapping[str, Tensor] | None = None,
    together: bool = True,
) -> None:
    """Write a checkpoint of a finished epoch, unless it lies there already; the latest are kept, and the best.

    Args:
        remembered: what the trainer remembered then; what it does now, when absent.
        together: whether all processes call this; else the main one does, with weights that are not divided.
    """
    folder, main, learner = parts.run.folder / CHECKPOINTS, parts.processes.main, parts.learner
    wanted = main and not lies_there(parts, progress.epoch)
    if parts.processes.any(wanted) if together else wanted:
        with parts.instruments.clock("checkpoint"):
            memory = learner.trainer.state() if remembered is None else remembered
            written = learner.weights, learner.optimizers, memory, parts.origin
            path = checkpoint.save(folder, progress, *written, write=main)
        if main:
            parts.events.checkpoint_saved(run=parts.run, epoch=progress.epoch, path=path)
    if main:
        archive.tidy(folder, learner.spec.checkpoint.keep, best.epoch if best else None)
        if best:
            archive.point_at(parts.run.folder, best.epoch)
    if together:
        parts.processes.wait()


def lies_there(parts: Parts, epoch: int) -> bool:
    """Whether there is a checkpoint of an epoch."""
    return archive.name(epoch) in [c.name for c in archive.checkpoints(parts.run.folder / CHECKPOINTS)]
