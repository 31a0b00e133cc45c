"""The first half of an epoch: sample, decode, score, compare."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor

from flowfactory.conditions.cache import ConditionStore
from flowfactory.contracts.hooks import Run
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.specs import StochasticSpec
from flowfactory.contracts.trainer import Scores, Trainer
from flowfactory.contracts.types import Rollout, Sample
from flowfactory.discovery.components import Events
from flowfactory.metrics.instruments import Instruments
from flowfactory.metrics.scores import diversity, group_metrics, score_metrics, zero_std_groups
from flowfactory.policy.policy import ModelPolicy
from flowfactory.processes.distributed import DTYPES, Processes
from flowfactory.processes.stop import StopRequest
from flowfactory.rewards.failures import check_losses, check_rewards, recording, without_failures
from flowfactory.rewards.scoring import Judge, Scored
from flowfactory.runs.media import save_samples
from flowfactory.sampling.epochs import Group, plan_epoch, share
from flowfactory.sampling.rollout import Trunks, draw_noise, rollout
from flowfactory.spec.tables import Spec
from flowfactory.spec.window import stochastic_steps

log = logging.getLogger("flowfactory")

SequenceT = TypeVar("SequenceT", bound=Sequence[Any])


@attrs.frozen(eq=False)
class Sampler:
    """What the first half of an epoch is made with."""

    spec: Spec
    run: Run
    events: Events
    processes: Processes
    instruments: Instruments
    conditions: ConditionStore
    policy: ModelPolicy
    scheduler: Scheduler[Any]
    trainer: Trainer[Any]
    judge: Judge


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


def collect(sampler: Sampler, epoch: int, stop: StopRequest) -> Collected:
    """Sample and score this process's share of an epoch.

    Raises:
        Stopped: a signal arrived; no weight has changed since the last epoch.
        RewardError: a reward failed past what its table allows; likewise.
    """
    spec, rows, processes = sampler.spec, sampler.conditions.rows, sampler.processes
    display, clock = sampler.instruments.display, sampler.instruments.clock
    everything = plan_epoch(spec.run.seed, epoch, len(rows), spec.sampling.prompts, spec.optimizer.updates)
    mine = share(everything, processes.rank, processes.world)
    members = [Member(group, replica) for update in mine for group in update for replica in range(spec.sampling.group)]
    size, kept = spec.sampling.group, spec.run.save_samples if processes.main else 0
    rollouts: list[Rollout] = []
    fresh: list[Sample] = []  # of the group that is not complete yet
    gallery: list[Sample] = []
    spreads: list[float] = []
    with (
        sampler.judge.session(spec.sampling.prompts, spec.sampling.overlap) as scoring,
        recording(scoring, sampler.run.folder, epoch),
    ):
        with display.phase(f"epoch {epoch}/{spec.run.epochs}: sampling", len(members), "samples") as bar:
            for chunk in chunks(members, spec.sampling.micro_batch):
                stop.check(processes)
                check_rewards(processes, scoring)
                part, media = sample(sampler, epoch, chunk)
                rollouts.append(part)
                for member, one in zip(chunk, media, strict=True):
                    fresh.append(Sample(rows[member.group.row], one, member.group.slot, member.replica))
                    if len(fresh) == size:
                        gallery += fresh[: max(0, kept - len(gallery))]
                        spreads.append(diversity([s.media for s in fresh]))
                        with clock("score"):
                            scoring.submit(fresh)
                        fresh = []
                bar.advance(len(chunk))
                bar.note(**scoring.means)
        with display.phase(f"epoch {epoch}/{spec.run.epochs}: scoring"), clock("score"):
            scored = scoring.finish()
        check_rewards(processes, scoring)
    report_samples(sampler, epoch, gallery, scored)
    everyone, slots = gather_scored(sampler, members, scored)
    check_losses(processes, spec.rewards, everyone.failed, slots)
    remainder = without_failures(spec.rewards, everyone.values, everyone.failed, slots)
    warn_constant(processes, epoch, remainder.values)
    advantages = sampler.trainer.advantages(Scores(remainder.values, sampler.judge.weights), slots)
    advantages = advantages.masked_fill(remainder.dropped, torch.nan)
    metrics = {
        **score_metrics("reward", remainder.values),
        **group_metrics(remainder.values, slots),
        **remainder.metrics,
        **{f"reward/{label}/failed_calls": float(calls) for label, calls in everyone.calls.items()},
        "reward/zero_std_groups": zero_std_groups(advantages, slots),
        "samples/diversity": float(processes.gather(torch.tensor(spreads)).double().mean()),
    }
    return Collected(members, Rollout.cat(rollouts), advantages[places(members, size)], metrics)


def sample(sampler: Sampler, epoch: int, members: Sequence[Member]) -> tuple[Rollout, Tensor]:
    """Trajectories of a micro-batch and what they decode to, `(B, …)` on the CPU."""
    spec, seed, policy, needs = sampler.spec, sampler.spec.run.seed, sampler.policy, sampler.trainer.needs
    device, clock = sampler.processes.device, sampler.instruments.clock
    steps = epoch_steps(spec, epoch)
    with clock("sample"):
        noise = draw_noise(
            [
                (seed, "start", epoch, m.group.slot, *(() if spec.sampling.shared_noise else (m.replica,)))
                for m in members
            ],
            [(seed, "steps", epoch, m.group.slot, m.replica) for m in members],
            policy.latent_shape(),
            len(steps),
        ).to(device)
        conditions = sampler.conditions.batch([m.group.row for m in members], device)
        with policy.using(needs.rollout):
            made = rollout(
                policy,
                sampler.scheduler,
                policy.sigmas(spec.sampling.steps),
                steps,
                noise,
                conditions,
                DTYPES[spec.sampling.storage],
                needs.trajectory == "steps",
                Trunks.by([m.group.slot for m in members]) if spec.sampling.shared_noise else None,
            )
    with clock("decode"):
        media = policy.decode(made.final)
        return made.to(torch.device("cpu")) if "trajectories" in spec.memory.offload else made, media


def epoch_steps(spec: Spec, epoch: int) -> tuple[int, ...]:
    """The stochastic steps of an epoch, the same on every process."""
    scheduler = spec.scheduler.spec
    if not isinstance(scheduler, StochasticSpec):
        return ()
    return stochastic_steps(scheduler.window, spec.sampling.steps, spec.run.seed, epoch)


def gather_scored(sampler: Sampler, members: Sequence[Member], scored: Scored) -> tuple[Scored, Tensor]:
    """What the rewards said on all processes, and the slot of each sample, sorted by slot and replica for any world."""
    processes, group = sampler.processes, sampler.spec.sampling.group
    order = processes.gather(places(members, group)).argsort()
    values = {label: processes.gather(column)[order] for label, column in scored.values.items()}
    failed = {label: processes.gather(column)[order] for label, column in scored.failed.items()}
    calls = {label: int(processes.gather(torch.tensor([count])).sum()) for label, count in scored.calls.items()}
    slots = torch.arange(len(order)) // group
    return Scored(values, failed, calls, scored.failures), slots


def places(members: Sequence[Member], group: int) -> Tensor:
    """The number `(N,)` of each member among all samples of the epoch, by slot and replica."""
    return torch.tensor([m.group.slot * group + m.replica for m in members])


def report_samples(sampler: Sampler, epoch: int, gallery: Sequence[Sample], scored: Scored) -> None:
    """Save the first samples of the main process and show them to the observers; the others' media are gone by now."""
    if not sampler.processes.main:
        return
    listed = {label: values[: len(gallery)].tolist() for label, values in scored.values.items()}
    save_samples(sampler.run.folder / "samples" / f"epoch-{epoch:04d}", gallery, listed)
    sampler.events.samples_scored(run=sampler.run, epoch=epoch, samples=gallery, scores=listed)


def warn_constant(processes: Processes, epoch: int, values: Mapping[str, Tensor]) -> None:
    """Say when a reward tells no two samples of an epoch apart; its advantages are zero then."""
    for label, column in values.items():
        known = column[~column.isnan()]
        if processes.main and len(known) > 1 and bool((known == known[0]).all()):
            log.warning("epoch %d: reward %r gave every sample %g; nothing is learned from it", epoch, label, known[0])


def chunks(items: SequenceT, size: int) -> Iterator[SequenceT]:
    """`items` in pieces of `size`; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]  # type: ignore[misc]
