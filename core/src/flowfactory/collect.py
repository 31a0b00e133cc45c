"""The first half of an epoch: sample, decode, score, compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor

from flowfactory.assembly import Parts, Run
from flowfactory.distributed import DTYPES
from flowfactory.epochs import Group, plan_epoch, share
from flowfactory.media import save_samples
from flowfactory.metrics import score_metrics, zero_std_groups
from flowfactory.rollout import draw_noise, rollout
from flowfactory.spec import StochasticSpec
from flowfactory.stop import StopRequest
from flowfactory.trainer import Scores
from flowfactory.types import Rollout, Sample
from flowfactory.window import stochastic_steps

SequenceT = TypeVar("SequenceT", bound=Sequence[Any])


@attrs.frozen
class Member:
    """One sample to be made: its group and its place there."""

    group: Group
    replica: int


@attrs.frozen(eq=False)
class Collected:
    """One process's share of an epoch, in the order of the updates: `N` samples.

    advantages: `(N,)` float64, NaN for samples to leave out.
    metrics: of the whole epoch.
    """

    members: Sequence[Member]
    rollout: Rollout
    advantages: Tensor
    metrics: dict[str, float]


def collect(parts: Parts, run: Run, epoch: int, stop: StopRequest) -> Collected:
    """Sample and score this process's share of an epoch.

    Raises:
        Stopped: a signal arrived; no weight has changed since the last epoch.
    """
    spec, rows = parts.spec, parts.data.rows
    everything = plan_epoch(spec.run.seed, epoch, len(rows), spec.sampling.prompts, spec.optimizer.updates)
    mine = share(everything, parts.processes.rank, parts.processes.world)
    members = [Member(group, replica) for update in mine for group in update for replica in range(spec.sampling.group)]
    rollouts: list[Rollout] = []
    samples: list[Sample] = []
    with parts.ui.phase(f"epoch {epoch}/{spec.run.epochs}: sampling", total=len(members)) as bar:
        for chunk in chunks(members, spec.sampling.micro_batch):
            stop.check(parts.processes)
            part, media = sample(parts, epoch, chunk)
            rollouts.append(part)
            samples += [
                Sample(rows[m.group.row], one, m.group.slot, m.replica) for m, one in zip(chunk, media, strict=True)
            ]
            bar.advance(len(chunk))
    with parts.ui.phase(f"epoch {epoch}/{spec.run.epochs}: scoring"), parts.clock("score"):
        scores = parts.judge.score(samples)
    report_samples(parts, run, epoch, samples, scores)
    everyone, slots = gather_scores(parts, members, scores)
    advantages = parts.trainer.advantages(everyone, slots)
    metrics = score_metrics("reward", everyone.values)
    metrics["reward/zero_std_groups"] = zero_std_groups(advantages, slots)
    return Collected(members, Rollout.cat(rollouts), advantages[places(parts, members)], metrics)


def sample(parts: Parts, epoch: int, members: Sequence[Member]) -> tuple[Rollout, Tensor]:
    """Trajectories of a micro-batch and what they decode to, `(B, …)` on the CPU."""
    spec, seed = parts.spec, parts.spec.run.seed
    device, shape = parts.processes.device, parts.policy.latent_shape()
    steps = epoch_steps(parts, epoch)
    with parts.clock("sample"):
        noise = draw_noise(
            [
                (seed, "start", epoch, m.group.slot, *(() if spec.sampling.shared_noise else (m.replica,)))
                for m in members
            ],
            [(seed, "steps", epoch, m.group.slot, m.replica) for m in members],
            shape,
            len(steps),
        ).to(device)
        conditions = parts.data.conditions.batch([m.group.row for m in members], device)
        with parts.policy.using(parts.trainer.needs.rollout):
            made = rollout(
                parts.policy,
                parts.scheduler,
                parts.policy.sigmas(spec.sampling.steps),
                steps,
                noise,
                conditions,
                DTYPES[spec.sampling.storage],
                parts.trainer.needs.trajectory == "steps",
            )
    with parts.clock("decode"):
        return made, parts.policy.decode(made.final)


def epoch_steps(parts: Parts, epoch: int) -> tuple[int, ...]:
    """The stochastic steps of an epoch, the same on every process."""
    scheduler = parts.spec.scheduler.spec
    if not isinstance(scheduler, StochasticSpec):
        return ()
    return stochastic_steps(scheduler.window, parts.spec.sampling.steps, parts.spec.run.seed, epoch)


def gather_scores(parts: Parts, members: Sequence[Member], scores: Mapping[str, Tensor]) -> tuple[Scores, Tensor]:
    """Scores of all processes, and the slot of each sample, sorted by slot and replica whatever the world size."""
    order = parts.processes.gather(places(parts, members)).argsort()
    values = {label: parts.processes.gather(column)[order] for label, column in scores.items()}
    slots = torch.arange(len(order)) // parts.spec.sampling.group
    return Scores(values, parts.judge.weights), slots


def places(parts: Parts, members: Sequence[Member]) -> Tensor:
    """The number `(N,)` of each member among all samples of the epoch, by slot and replica."""
    return torch.tensor([m.group.slot * parts.spec.sampling.group + m.replica for m in members])


def report_samples(parts: Parts, run: Run, epoch: int, samples: Sequence[Sample], scores: Mapping[str, Tensor]) -> None:
    """Save the first samples of the main process and tell the observers of all of its."""
    if not parts.processes.main:
        return
    listed = {label: values.tolist() for label, values in scores.items()}
    save_samples(parts.folder / "samples" / f"epoch-{epoch:04d}", samples[: parts.spec.run.save_samples], listed)
    parts.registry.events.samples_scored(run=run, epoch=epoch, samples=samples, scores=listed)


def chunks(items: SequenceT, size: int) -> Iterator[SequenceT]:
    """`items` in pieces of `size`; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]  # type: ignore[misc]
