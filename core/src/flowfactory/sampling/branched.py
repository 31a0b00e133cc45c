"""Samples that branch: one start noise grows into several, which share what lies before they part.

A row to learn from is a branch: the one stochastic step that it begins with. What it scores is the mean of the samples
that it leads to. Compared are of a fan all branches of a prompt that leave at one step; of a tree those of one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.scheduler import Scheduler, StochasticScheduler, to_storage
from flowfactory.contracts.specs import Branches
from flowfactory.contracts.trainer import Policy
from flowfactory.contracts.types import Conditions, Lineage, Rollout, Sample
from flowfactory.losses.transition import field_of
from flowfactory.processes.distributed import DTYPES
from flowfactory.rewards.advantages import Scores
from flowfactory.rewards.session import Scored
from flowfactory.sampling.epochs import epoch_steps
from flowfactory.sampling.rollout import Noise, draw_noise
from flowfactory.sampling.source import Member, chunks, places
from flowfactory.sampling.studio import Compared, Made, Studio
from flowfactory.sampling.trajectories import Trajectories
from flowfactory.spec.window import Growth, grown


@attrs.frozen(eq=False)
class Branched:
    """Every member is a start, out of which branches grow; see `Way`.

    growth: of the epoch's first group; others may have other steps, and as many.
    """

    studio: Studio
    branches: Branches
    epoch: int
    growth: Growth = attrs.field()

    @growth.default
    def _first(self) -> Growth:
        return self.of(0)

    @property
    def columns(self) -> int:
        """One for each step at which a fan opens; a tree has one."""
        return len(self.growth.leaves) // self.leaves

    @property
    def ends(self) -> int:
        """All of them."""
        return self.columns

    @property
    def leaves(self) -> int:
        """What grows at one step of a fan; all that a tree ends in."""
        return self.branches.width if self.branches.kind == "fan" else len(self.growth.leaves)

    @property
    def together(self) -> int:
        """The trunks of a prompt; each tree is judged by itself."""
        return self.studio.spec.sampling.group if self.branches.kind == "fan" else 1

    @property
    def parents(self) -> Sequence[int]:
        """Those of the branches."""
        return self.growth.parents

    def of(self, slot: int) -> Growth:
        """What grows out of a start of a group."""
        steps = self.studio.spec.sampling.steps
        return grown(self.branches, epoch_steps(self.studio.spec, self.epoch, slot), steps)

    def pieces(self, epoch: int, members: Sequence[Member]) -> list[Sequence[Member]]:
        """As many starts as end in a micro-batch of samples, one at least."""
        size = self.growth.together(self.studio.spec.sampling.micro_batch)
        alike = groupby(members, lambda m: self.of(m.group.slot).steps)
        return [piece for _, same in alike for piece in chunks(list(same), size)]

    def sample(self, epoch: int, members: Sequence[Member], decoded: bool) -> Made:
        """What grows out of some starts; see `Way`."""
        studio, spec, policy = self.studio, self.studio.spec, self.studio.policy
        growth, device, count = self.of(members[0].group.slot), studio.processes.device, len(self.growth.leaves)
        with studio.instruments.clock("sample"):
            start, own = (studio.keys(stream, epoch, members) for stream in ("start", "steps"))
            noise = draw_noise(start, own, policy.latent_shape(), len(growth.steps)).to(device)
            conditions = studio.conditions.batch([m.group.row for m in members], device)
            with policy.sampling(studio.trainer.needs.rollout):
                steps, final = branch(
                    policy,
                    studio.scheduler,
                    policy.sigmas(spec.sampling.steps),
                    growth,
                    noise,
                    conditions,
                    DTYPES[spec.sampling.storage],
                    spec.sampling.micro_batch,
                )
        kept, owners = [studio.kept(step) for step in steps], torch.arange(len(members)).repeat_interleave(count)
        parts = [
            step[member * each : (member + 1) * each]
            for member in range(len(members))
            for step in kept
            for each in [len(step) // len(members)]
        ]
        whose = [members[owner] for owner in owners.tolist()]
        places = [m.replica * count + leaf for m in members for leaf in range(count)]
        every = {name: tensor[owners.to(device)] for name, tensor in conditions.items()}
        samples = chunks(studio.shown(whose, places, final.flatten(0, 1), every, decoded), self.leaves)
        columns: list[list[Sample]] = [[] for _ in range(self.columns)]
        for number, run in enumerate(samples):
            columns[number % self.columns] += run
        return Made(parts, columns, [final])

    def compared(
        self,
        values: Mapping[str, Tensor],
        dropped: Tensor,
        everyone: Scored,
        members: Sequence[Member],
        rows: Trajectories,
    ) -> Compared:
        """Branches, by what they lead to; see `Way`."""
        spec, processes, count = self.studio.spec, self.studio.processes, len(self.parents)
        order = processes.gather(places(members, spec.sampling.group)).argsort()
        slots = torch.arange(len(order)) // spec.sampling.group
        grown_there = [self.of(slot) for slot in slots.tolist()]
        logprobs = processes.gather(rows.logprobs().reshape(-1, count))[order]
        ends = {label: column.reshape(len(order), -1) for label, column in values.items()}
        scores, groups = of_branches(self.branches, grown_there, slots, ends, self.studio.judge.weights, logprobs)
        firsts = [own[0] for own in leaves_under(self.growth)]
        return Compared(scores, groups, dropped.reshape(len(order), -1)[:, firsts].flatten())


def of_branches(
    branches: Branches,
    growths: Sequence[Growth],
    slots: Tensor,
    ends: Mapping[str, Tensor],
    weights: Mapping[str, float],
    logprobs: Tensor,
) -> tuple[Scores, Tensor]:
    """What the branches of N starts score, one after the other, and which of them compare.

    Args:
        growths, slots: of each start, what grows out of it and its group `(N,)`. ends: scores of samples `(N, leaves)`.
        logprobs: of branches `(N, branches)`.
    """
    count, starts, under = logprobs.shape[1], torch.arange(len(slots)), leaves_under(growths[0])
    steps, parents = torch.tensor([growth.steps for growth in growths]), torch.tensor(growths[0].parents)
    above = torch.where(parents < 0, -1, parents + count * starts[:, None])
    led_to = {
        label: torch.stack([column[:, own].nanmean(1) for own in under], dim=1).flatten()
        for label, column in ends.items()
    }
    whose = slots if branches.kind == "fan" else starts
    groups = whose[:, None] * len(growths[0].keep) + steps
    lineage = Lineage(steps.flatten(), above.flatten(), logprobs.flatten())
    return Scores(led_to, weights, lineage=lineage), groups.flatten()


def leaves_under(growth: Growth) -> list[list[int]]:
    """Of each branch, which of the samples in order it leads to."""
    under: list[list[int]] = [[] for _ in growth.steps]
    for number, leaf in enumerate(growth.leaves):
        while leaf >= 0:
            under[leaf].append(number)
            leaf = growth.parents[leaf]
    return under


@torch.no_grad()
def branch(
    policy: Policy,
    scheduler: Scheduler[Any],
    sigmas: Tensor,
    growth: Growth,
    noise: Noise,
    conditions: Conditions,
    storage: torch.dtype,
    together: int,
) -> tuple[list[Rollout], Tensor]:
    """What grows out of starts `(B, …)`: at each stochastic step branches, those of a start side by side; and samples.

    Every state that several branches share is made once, and the network asked about it once.

    Args:
        noise: of each start, and of each of its branches. together: how many rows pass the network at a time.

    Returns:
        the steps, and the latents `(B, leaves, …)` that they end in.
    """
    if not isinstance(scheduler, StochasticScheduler):
        raise TypeError(f"{type(scheduler).__name__} has no stochastic steps")
    x, ceiling, state, made = to_storage(noise.start, storage)[:, None], float(sigmas[1]), scheduler.start(), 0
    levels, grown_at, device = sigmas.to(x.device)[:, None], list[Rollout](), x.device
    for i, rows in enumerate(zip(growth.keep, growth.split, strict=True)):
        keep, split = (torch.tensor(own, dtype=torch.long, device=device) for own in rows)
        v = velocities(policy, scheduler, x, levels[i : i + 2], conditions, together)
        going, parting = x[:, keep].flatten(0, 1), x[:, split].flatten(0, 1)
        sigma, sigma_next = levels[i : i + 2].expand(-1, len(going))
        moved, state = scheduler.advance(state, v[:, keep].flatten(0, 1), going, sigma, sigma_next)
        after = [apart(to_storage(moved, storage), len(x), len(keep))]
        if len(split):
            drawn, made = noise.steps[:, made : made + len(split)].flatten(0, 1), made + len(split)
            sigma, sigma_next = levels[i : i + 2].expand(-1, len(parting))
            step = scheduler.step(v[:, split].flatten(0, 1), parting, sigma, sigma_next, ceiling, drawn, storage)
            grown_at.append(Rollout(sigmas, (i,), {i: parting, i + 1: step.x}, {i: step.logprob}, {i: step.mean}))
            after.append(apart(step.x, len(x), len(split)))
        x = torch.cat(after, dim=1)
    return grown_at, x


def velocities(
    policy: Policy, scheduler: Scheduler[Any], x: Tensor, levels: Tensor, conditions: Conditions, together: int
) -> Tensor:
    """The velocities `(B, rows, …)` of latents to step by, from one level to the next; `together` of them at a time."""
    flat, owners = x.flatten(0, 1), torch.arange(len(x), device=x.device).repeat_interleave(x.shape[1])
    found = [
        scheduler.look(
            field_of(policy, {name: tensor[own] for name, tensor in conditions.items()}),
            piece,
            *levels.expand(-1, len(piece)),
        )
        for piece, own in zip(torch.split(flat, together), torch.split(owners, together), strict=True)
    ]
    return apart(torch.cat(found), *x.shape[:2])


def apart(x: Tensor, starts: int, rows: int) -> Tensor:
    """Rows `(starts * rows, …)` as `(starts, rows, …)`."""
    return x.reshape(starts, rows, *x.shape[1:])
