"""Samples of the trained model itself: roll out, decode, score, compare; and again for groups that teach nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import attrs
import torch
from torch import Tensor

from flowfactory.components.resolved import Events
from flowfactory.conditions.cache import ConditionStore
from flowfactory.contracts.hooks import Run
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.trainer import Trainer
from flowfactory.contracts.types import Rollout, Sample
from flowfactory.data.sources import Pool, pools
from flowfactory.metrics import merit
from flowfactory.metrics.instruments import Instruments
from flowfactory.metrics.scores import diversity, group_metrics, score_metrics, source_metrics, zero_std_groups
from flowfactory.policy.finite import check_samples
from flowfactory.policy.policy import ModelPolicy
from flowfactory.processes.distributed import DTYPES, Processes
from flowfactory.processes.stop import StopRequest
from flowfactory.rewards.advantages import Scores
from flowfactory.rewards.failures import check_losses, check_rewards, recording, without_failures
from flowfactory.rewards.scoring import Judge
from flowfactory.rewards.session import Scored
from flowfactory.runs.media import save_samples
from flowfactory.sampling.epochs import Group, Share, epoch_steps, plan_epoch, refilled, share
from flowfactory.sampling.judged import gathered, teach_nothing, warn_constant
from flowfactory.sampling.rollout import Trunks, draw_noise, rollout
from flowfactory.sampling.source import Collected, Member, chunks, group_counts, members_of, places
from flowfactory.sampling.trajectories import Trajectories
from flowfactory.spec.tables import Spec


@attrs.frozen(eq=False)
class Round:
    """Some groups of this process, sampled and scored; `N` samples, those of a group side by side. There may be none.

    parts: the trajectories, in the order of the members. gallery: the first samples of the process, to be saved.
    spreads: how diverse each group is; none where no reward looks at media.
    """

    members: Sequence[Member]
    parts: Sequence[Rollout]
    scored: Scored
    gallery: Sequence[Sample]
    spreads: Sequence[float]

    def replaced(self, fresh: Round) -> Round:
        """The same groups, those of `fresh` in the place of the ones with their slots."""
        new = {(m.group.slot, m.replica): len(self.members) + i for i, m in enumerate(fresh.members)}
        both = [*self.members, *fresh.members]
        index = [new.get((m.group.slot, m.replica), i) for i, m in enumerate(self.members)]
        values, failed, own = self.scored.values, self.scored.failed, fresh.scored
        scored = attrs.evolve(
            self.scored,
            values={label: torch.cat([column, own.values[label]])[index] for label, column in values.items()},
            failed={label: torch.cat([column, own.failed[label]])[index] for label, column in failed.items()},
            calls={label: count + own.calls[label] for label, count in self.scored.calls.items()},
            parts={
                name: torch.cat([self.scored.part(name), own.part(name)])[index]
                for name in {**self.scored.parts, **own.parts}
            },
        )
        every = Trajectories.joined([*self.parts, *fresh.parts])
        parts = [every[list(same)] for _, same in groupby(index, every.steps)]
        return attrs.evolve(self, members=[both[i] for i in index], parts=parts, scored=scored)


@attrs.frozen(eq=False)
class Rollouts:
    """The source of online training. Its fields are what samples are made, scored and shown with."""

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

    @cached_property
    def pools(self) -> Sequence[Pool]:
        """The sources of the data, as prompts are drawn from them."""
        return pools(self.spec.data, self.conditions.rows)

    def collect(self, epoch: int, stop: StopRequest) -> Collected:
        """Sample and score this process's share of an epoch; see `Source`."""
        spec, processes, size = self.spec, self.processes, self.spec.sampling.group
        everything = planned(self, epoch)
        sources = [self.conditions.rows[group.row].source for update in everything for group in update]
        counts = Counter(sources)
        mine = [group for update in share(everything, processes.rank, processes.world) for group in update]
        made = sample_round(self, epoch, stop, mine, counts)
        report_samples(self, epoch, made.gallery, made.scored)
        first, slots = gathered(processes, made.members, made.scored, size)
        everyone, rounds, replaced = first, 0, 0
        for number in range(1, spec.sampling.refill + 1):
            wanting = teach_nothing(spec.rewards, everyone, slots)
            if not wanting:
                break
            groups = [refilled(spec.run.seed, epoch, self.pools, g, number) for g in mine if g.slot in wanting]
            made = made.replaced(sample_round(self, epoch, stop, groups, counts, number))
            everyone, _ = gathered(processes, made.members, made.scored, size)
            rounds, replaced = number, replaced + len(wanting)
        check_losses(processes, spec.rewards, everyone.failed, slots, counts)
        sampled = without_failures(spec.rewards, first.values, first.failed, slots)
        remainder = without_failures(spec.rewards, everyone.values, everyone.failed, slots)
        warn_constant(processes, epoch, remainder.values)
        advantages = self.compared(remainder.values, slots).masked_fill(remainder.dropped, torch.nan)
        means = score_metrics("reward", sampled.values)
        parts = {name: column.masked_fill(sampled.dropped, torch.nan) for name, column in first.parts.items()}
        metrics = {
            **means,
            **score_metrics("reward", parts),
            **merit.score("reward", spec.rewards, means),
            **group_metrics(sampled.values, slots),
            **group_counts(counts),
            **source_metrics(sampled.values, [sources[slot] for slot in slots.tolist()]),
            **remainder.metrics,
            **{f"reward/{label}/failed_calls": float(calls) for label, calls in everyone.calls.items()},
        }
        if spec.sampling.refill:
            metrics |= {"refill/rounds": float(rounds), "refill/groups": float(replaced)}
        if self.trainer.needs.scores:
            metrics["reward/zero_std_groups"] = zero_std_groups(advantages, slots)
        if self.judge.reads("media"):
            metrics["samples/diversity"] = float(processes.gather(torch.tensor(made.spreads)).double().mean())
        own = places(made.members, size)
        scores = {label: column[own] for label, column in remainder.values.items()}
        return Collected(epoch, made.members, Trajectories.joined(made.parts), scores, advantages[own], metrics)

    def compared(self, values: Mapping[str, Tensor], slots: Tensor) -> Tensor:
        """Advantages `(N,)` float64 of all samples; 0 where the trainer compares none."""
        if not self.trainer.needs.scores:
            return torch.zeros(len(slots), dtype=torch.float64)
        return self.trainer.advantages(Scores(values, self.judge.weights), slots)


def planned(source: Rollouts, epoch: int) -> Share:
    """The groups of an epoch, over all processes."""
    spec = source.spec
    return plan_epoch(spec.run.seed, epoch, source.pools, spec.sampling.prompts, spec.optimizer.updates)


def sample_round(
    source: Rollouts,
    epoch: int,
    stop: StopRequest,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    number: int = 0,
) -> Round:
    """Sample and score some groups. In further rounds (`number` > 0) processes may have different numbers of them.

    Args:
        counts: how many groups the epoch has, over all processes, by their source.
    """
    spec, processes = source.spec, source.processes
    display, clock = source.instruments.display, source.instruments.clock
    size, kept = spec.sampling.group, spec.run.save_samples if processes.main and not number else 0
    members, judged = members_of(groups, size), source.judge.reads("media")
    pieces = sampled_together(spec, epoch, members)
    surplus = int(processes.gather(torch.tensor([len(pieces)])).max()) - len(pieces)
    parts: list[Rollout] = []
    fresh: list[Sample] = []  # of the group that is not complete yet
    gallery: list[Sample] = []
    spreads: list[float] = []
    name = f"epoch {epoch}/{spec.run.epochs}: sampling" + (f" again ({number})" if number else "")
    with (
        source.judge.session(counts, spec.sampling.overlap, lambda: stop.asked(processes)) as scoring,
        recording(processes, scoring, source.run.folder, epoch),
    ):
        with display.phase(name, len(members), "samples") as bar:
            for chunk in [*pieces, *[[]] * surplus]:
                stop.check(processes)
                check_rewards(processes, scoring)
                if not chunk and not processes.sharded:
                    check_samples(processes, name, latents=True, media=True, trained=epoch > 1)
                    continue
                looked_at = judged or len(gallery) < kept
                # Where weights are divided, all processes sample together; what is too much is thrown away.
                part, samples = sample(source, epoch, chunk or [Member(planned(source, epoch)[0][0], 0)], looked_at)
                sound = bool(part.final.isfinite().all()), all(bool(one.media.isfinite().all()) for one in samples)
                check_samples(processes, name, *sound, trained=epoch > 1)
                if not chunk:
                    continue
                parts.append(part)
                for one in samples:
                    fresh.append(one)
                    if len(fresh) == size:
                        gallery += fresh[: max(0, kept - len(gallery))]
                        if judged:
                            spreads.append(diversity([s.media for s in fresh]))
                        with clock("score"):
                            scoring.submit(fresh)
                        fresh = []
                bar.advance(len(chunk))
                bar.note(**scoring.means)
        with display.phase(f"epoch {epoch}/{spec.run.epochs}: scoring"), clock("score"):
            scored = scoring.finish()
        stop.check(processes)
        check_rewards(processes, scoring)
    return Round(members, parts, scored, gallery, spreads)


def sampled_together(spec: Spec, epoch: int, members: Sequence[Member]) -> list[Sequence[Member]]:
    """The micro-batches that pass the network together; all of one have the same stochastic steps."""
    alike = groupby(members, lambda m: epoch_steps(spec, epoch, m.group.slot))
    return [piece for _, same in alike for piece in chunks(list(same), spec.sampling.micro_batch)]


def sample(
    source: Rollouts, epoch: int, members: Sequence[Member], looked_at: bool = True
) -> tuple[Rollout, list[Sample]]:
    """Trajectories of a micro-batch, and the samples that rewards see.

    Args:
        looked_at: whether anybody reads media; they are not decoded otherwise.
    """
    spec, seed, policy, needs = source.spec, source.spec.run.seed, source.policy, source.trainer.needs
    device, clock = source.processes.device, source.instruments.clock
    steps = epoch_steps(spec, epoch, members[0].group.slot)
    again = [(m.group.round,) if m.group.round else () for m in members]
    with clock("sample"):
        noise = draw_noise(
            [
                (seed, "start", epoch, m.group.slot, *(() if spec.sampling.shared_noise else (m.replica,)), *round_)
                for m, round_ in zip(members, again, strict=True)
            ],
            [
                (seed, "steps", epoch, m.group.slot, m.replica, *round_)
                for m, round_ in zip(members, again, strict=True)
            ],
            policy.latent_shape(),
            len(steps),
        ).to(device)
        conditions = source.conditions.batch([m.group.row for m in members], device)
        with policy.using(needs.rollout):
            made = rollout(
                policy,
                source.scheduler,
                policy.sigmas(spec.sampling.steps),
                steps,
                noise,
                conditions,
                DTYPES[spec.sampling.storage],
                needs.trajectory,
                Trunks.by([m.group.slot for m in members]) if spec.sampling.shared_noise else None,
            )
    with clock("decode"):
        media = policy.decode(made.final) if looked_at else made.final.new_empty((len(members), 0))
    shown = [source.conditions.rows[m.group.row] for m in members]
    samples = source.judge.samples(shown, [(m.group.slot, m.replica) for m in members], media, made.final, conditions)
    return made.to(torch.device("cpu")) if "trajectories" in spec.memory.offload else made, samples


def report_samples(source: Rollouts, epoch: int, gallery: Sequence[Sample], scored: Scored) -> None:
    """Save the first samples of the main process and show them to the observers; the others' media are gone by now."""
    if not source.processes.main:
        return
    listed = {name: column[: len(gallery)].tolist() for name, column in {**scored.values, **scored.parts}.items()}
    save_samples(source.run.folder / "samples" / f"epoch-{epoch:04d}", gallery, listed)
    shown = [attrs.evolve(sample, latents=None, conditions=None) for sample in gallery]
    source.events.samples_scored(run=source.run, epoch=epoch, samples=shown, scores=listed)
