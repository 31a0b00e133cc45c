"""Samples of the trained model itself: roll out, decode, score, compare; and again for groups that teach nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.trainer import Scores
from flowfactory.data.sources import Pool, pools
from flowfactory.metrics import merit
from flowfactory.metrics.scores import group_metrics, score_metrics, source_metrics, zero_std_groups
from flowfactory.processes.stop import StopRequest
from flowfactory.rewards.failures import check_losses, without_failures
from flowfactory.rewards.session import Scored
from flowfactory.runs.media import save_samples
from flowfactory.sampling.branched import Branched
from flowfactory.sampling.chains import Chains
from flowfactory.sampling.epochs import Share, epoch_steps, plan_epoch, refilled, share
from flowfactory.sampling.judged import gathered, teach_nothing, warn_constant
from flowfactory.sampling.rounds import Round, sample_round
from flowfactory.sampling.source import Collected, Member, group_counts, places
from flowfactory.sampling.studio import Studio, Way
from flowfactory.sampling.trajectories import Trajectories


@attrs.frozen(eq=False)
class Rollouts:
    """The source of online training."""

    studio: Studio

    @cached_property
    def pools(self) -> Sequence[Pool]:
        """The sources of the data, as prompts are drawn from them."""
        return pools(self.studio.spec.data, self.studio.conditions.rows)

    def way(self, epoch: int) -> Way:
        """How samples are made."""
        branches = self.studio.trainer.needs.branches
        if branches is not None:
            return Branched(self.studio, branches, epoch)
        return Chains(self.studio, len(epoch_steps(self.studio.spec, epoch, 0)))

    def collect(self, epoch: int, stop: StopRequest) -> Collected:
        """Sample and score this process's share of an epoch; see `Source`."""
        studio, spec, way = self.studio, self.studio.spec, self.way(epoch)
        processes, size, rows = studio.processes, spec.sampling.group, len(way.parents)
        everything = planned(self, epoch)
        sources = [studio.conditions.rows[group.row].source for update in everything for group in update]
        counts, spare = Counter(sources), Member(everything[0][0], 0)
        mine = [group for update in share(everything, processes.team.number, processes.team.count) for group in update]
        made = sample_round(studio, way, epoch, stop, mine, counts, spare)
        report_samples(studio, epoch, made)
        first, slots = gathered(processes, made.members, made.scored, size)
        everyone, rounds, replaced, slot_of = first, 0, 0, slots.repeat_interleave(way.ends * way.leaves)
        for number in range(1, spec.sampling.refill + 1):
            wanting = teach_nothing(spec.rewards, ends(everyone, way), slot_of)
            if not wanting:
                break
            groups = [refilled(spec.run.seed, epoch, self.pools, g, number) for g in mine if g.slot in wanting]
            made = made.replaced(sample_round(studio, way, epoch, stop, groups, counts, spare, number), rows)
            everyone, _ = gathered(processes, made.members, made.scored, size)
            rounds, replaced = number, replaced + len(wanting)
        failed = {label: column.flatten(1).any(1) for label, column in everyone.failed.items()}
        check_losses(processes, spec.rewards, failed, slots, counts)
        units, last = scored_together(way, len(slots)), ends(everyone, way)
        sampled = without_failures(spec.rewards, ends(first, way).values, ends(first, way).failed, units)
        remainder = without_failures(spec.rewards, last.values, last.failed, units)
        warn_constant(processes, epoch, remainder.values)
        trajectories = Trajectories.joined(made.parts)
        compared = way.compared(remainder.values, remainder.dropped, everyone, made.members, trajectories)
        advantages = self.advantages(compared.scores, compared.groups)
        advantages[compared.dropped] = torch.nan
        means = score_metrics("reward", sampled.values)
        parts = {n: column.masked_fill(sampled.dropped, torch.nan) for n, column in ends(first, way).parts.items()}
        metrics = {
            **means,
            **score_metrics("reward", parts),
            **merit.score("reward", spec.rewards, means),
            **group_metrics(sampled.values, units),
            **group_counts(counts),
            **source_metrics(sampled.values, [sources[slot] for slot in slot_of.tolist()]),
            **remainder.metrics,
            **{f"reward/{label}/failed_calls": float(calls) for label, calls in everyone.calls.items()},
        }
        if spec.sampling.refill:
            metrics |= {"refill/rounds": float(rounds), "refill/groups": float(replaced)}
        if studio.trainer.needs.scores:
            metrics["reward/zero_std_groups"] = zero_std_groups(advantages, compared.groups)
        if studio.judge.reads("media"):
            metrics["samples/diversity"] = float(processes.gather(torch.tensor(made.spreads)).double().mean())
        own = (places(made.members, size)[:, None] * rows + torch.arange(rows)).flatten()
        scores = {label: column[own] for label, column in compared.scores.values.items()}
        collected = Collected(epoch, made.members, trajectories, scores, advantages[own], metrics)
        if studio.trainer.needs.branches is None:
            return collected
        return by_step(collected, way.parents, spec.optimizer.updates)

    def advantages(self, scores: Scores, groups: Tensor) -> Tensor:
        """Those of all samples, over all processes; 0 where the trainer compares none."""
        if not self.studio.trainer.needs.scores:
            return torch.zeros(len(groups), dtype=torch.float64)
        return self.studio.trainer.advantages(scores, groups).clone()


def by_step(collected: Collected, parents: Sequence[int], updates: int) -> Collected:
    """Branches instead of the members that they grow from; in each update those of one step side by side."""
    count, rows = len(parents), len(collected.members) * len(parents)
    order = sorted(range(rows), key=lambda row: (row * updates // rows, collected.trajectories.steps(row)))
    starts = [collected.members[row // count] for row in order]
    own = [row % count for row in order]
    chosen = torch.tensor(order)
    return attrs.evolve(
        collected,
        members=[Member(m.group, m.replica * count + branch) for m, branch in zip(starts, own, strict=True)],
        trajectories=collected.trajectories.ordered(order),
        scores={label: column[chosen] for label, column in collected.scores.items()},
        advantages=collected.advantages[chosen],
        parents=torch.tensor(
            [-1 if parents[b] < 0 else m.replica * count + parents[b] for m, b in zip(starts, own, strict=True)]
        ),
    )


def planned(source: Rollouts, epoch: int) -> Share:
    """The groups of an epoch, over all processes."""
    spec = source.studio.spec
    return plan_epoch(spec.run.seed, epoch, source.pools, spec.sampling.prompts, spec.optimizer.updates)


def ends(scored: Scored, way: Way) -> Scored:
    """What samples scored, without looks, one after the other `(N * ends * leaves,)`."""
    return attrs.evolve(
        scored,
        values={label: column[:, : way.ends].flatten() for label, column in scored.values.items()},
        failed={label: column[:, : way.ends].flatten() for label, column in scored.failed.items()},
        parts={name: column[:, : way.ends].flatten() for name, column in scored.parts.items()},
    )


def scored_together(way: Way, members: int) -> Tensor:
    """For each of what `ends` has, the number of the piece that it was scored in."""
    pieces = torch.arange(members)[:, None] // way.together * way.ends + torch.arange(way.ends)
    return pieces.flatten().repeat_interleave(way.leaves)


def report_samples(studio: Studio, epoch: int, made: Round) -> None:
    """Save the first samples of the main process and show them to the observers; the others' media are gone by now."""
    if not studio.processes.main:
        return
    save_samples(studio.run.folder / "samples" / f"epoch-{epoch:04d}", made.gallery, made.listed, made.words)
    shown = [attrs.evolve(s, media=s.media.cpu(), latents=None, conditions=None) for s in made.gallery]
    studio.events.samples_scored(run=studio.run, epoch=epoch, samples=shown, scores=made.listed)
