"""Samples that are one trajectory each, and what becomes of the states on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, Literal

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.scheduler import Scheduler, euler, like_latents, to_storage
from flowfactory.contracts.trainer import Policy
from flowfactory.contracts.types import Conditions
from flowfactory.processes.distributed import DTYPES
from flowfactory.rewards.advantages import Scores
from flowfactory.rewards.session import Scored
from flowfactory.sampling.epochs import epoch_steps
from flowfactory.sampling.rollout import Trunks, complete, draw_noise, rollout
from flowfactory.sampling.source import Member, chunks
from flowfactory.sampling.studio import Compared, Made, Studio
from flowfactory.sampling.trajectories import Trajectories
from flowfactory.spec.tables import RewardEntry
from flowfactory.spec.window import looked_at


@attrs.frozen(eq=False)
class Chains:
    """Every member is a sample, and a row to learn from. See `Way`."""

    studio: Studio
    steps: int
    """How many stochastic steps each has."""

    ends: ClassVar[int] = 1
    leaves: ClassVar[int] = 1
    parents: ClassVar[Sequence[int]] = (-1,)

    @property
    def columns(self) -> int:
        """The samples themselves, and looks."""
        return 1 + len(looked_at(self.studio.trainer.needs.looks, range(self.steps)))

    @property
    def together(self) -> int:
        """The samples of a group."""
        return self.studio.spec.sampling.group

    def pieces(self, epoch: int, members: Sequence[Member]) -> list[Sequence[Member]]:
        """Micro-batches; all of one have the same stochastic steps."""
        spec = self.studio.spec
        alike = groupby(members, lambda m: epoch_steps(spec, epoch, m.group.slot))
        return [piece for _, same in alike for piece in chunks(list(same), spec.sampling.micro_batch)]

    def sample(self, epoch: int, members: Sequence[Member], decoded: bool) -> Made:
        """The trajectories of a micro-batch, and its looks; see `Way`."""
        studio, spec, policy = self.studio, self.studio.spec, self.studio.policy
        needs, device, storage = studio.trainer.needs, studio.processes.device, DTYPES[spec.sampling.storage]
        steps, places = epoch_steps(spec, epoch, members[0].group.slot), [m.replica for m in members]
        with studio.instruments.clock("sample"):
            start, own = (studio.keys(stream, epoch, members) for stream in ("start", "steps"))
            noise = draw_noise(start, own, policy.latent_shape(), len(steps)).to(device)
            conditions = studio.conditions.batch([m.group.row for m in members], device)
            sigmas = policy.sigmas(spec.sampling.steps)
            looks = Looks(needs.looks, looked_at(needs.looks, steps), sigmas, storage)
            with policy.sampling(needs.rollout):
                made = rollout(
                    policy,
                    studio.scheduler,
                    sigmas,
                    steps,
                    noise,
                    conditions,
                    storage,
                    needs.trajectory,
                    Trunks.by([m.group.slot for m in members]) if spec.sampling.shared_noise else None,
                    looks.told,
                )
        finals, columns = [made.final], [studio.shown(members, places, made.final, conditions, decoded)]
        for step in looks.found:
            with studio.instruments.clock("sample"), policy.sampling(needs.rollout):
                finals.append(looks.end(step, policy, studio.scheduler, conditions))
            columns.append(studio.shown(members, places, finals[-1], conditions, decoded))
        return Made([studio.kept(made)], columns, finals)

    def compared(
        self,
        values: Mapping[str, Tensor],
        dropped: Tensor,
        everyone: Scored,
        members: Sequence[Member],
        rows: Trajectories,
    ) -> Compared:
        """Samples, and their looks; see `Way`."""
        entries, weights = self.studio.spec.rewards, self.studio.judge.weights
        slots = torch.arange(len(dropped)) // self.together
        looks = looks_of(self.studio.trainer.needs.looks, entries, everyone, values, slots)
        return Compared(Scores(values, weights, looks), slots, dropped)


@attrs.define(eq=False)
class Looks:
    """What is looked at on the way: found by the steps `at`, while they are taken.

    found: estimates of the data, or states after an Euler step from there.
    """

    kind: Literal["none", "completed", "estimated"]
    at: Sequence[int]
    sigmas: Tensor
    storage: torch.dtype
    found: dict[int, Tensor] = attrs.field(factory=dict)

    def told(self, step: int, x: Tensor, v: Tensor) -> None:
        """Hear of a step's latents and velocity."""
        if step in self.at:
            sigma, sigma_next = self.sigmas[step : step + 2, None].to(x.device).expand(-1, len(x))
            if self.kind == "completed":
                self.found[step] = to_storage(euler(v, x, sigma, sigma_next), self.storage)
            else:
                self.found[step] = x.float() - like_latents(sigma, x) * v.float()

    def end(self, step: int, policy: Policy, scheduler: Scheduler[Any], conditions: Conditions) -> Tensor:
        """The latents that are decoded for the look at a step."""
        x = self.found[step]
        if self.kind == "estimated":
            return x
        return complete(policy, scheduler, self.sigmas, step + 1, x, conditions, self.storage)


def looks_of(
    kind: str, entries: Sequence[RewardEntry], everyone: Scored, values: Mapping[str, Tensor], slots: Tensor
) -> dict[str, Tensor]:
    """What looks scored, by label `(N, n+1)`; a sample without further noise is what its last state leads to.

    Where a reward that counts failed at a look, nobody has a score for that look of that group.
    """
    if kind == "none":
        return {}
    counts = [everyone.failed[entry.label][:, 1:, 0] for entry in entries if entry.weight != 0]
    missing = torch.stack(counts).any(0)
    for slot in set(slots.tolist()):
        missing[slots == slot] = missing[slots == slot].any(0)
    found = {
        label: column[:, 1:, 0].masked_fill(missing | everyone.failed[label][:, 1:, 0], torch.nan)
        for label, column in everyone.values.items()
    }
    if kind == "estimated":
        return found
    return {label: torch.cat([column, values[label][:, None]], dim=1) for label, column in found.items()}
