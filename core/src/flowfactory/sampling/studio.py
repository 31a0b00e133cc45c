"""What samples are made, scored and shown with, and what the ways of making them have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from flowfactory.components.resolved import Events
from flowfactory.conditions.cache import ConditionStore
from flowfactory.contracts.hooks import Run
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.seeds import Key
from flowfactory.contracts.trainer import Scores, Trainer
from flowfactory.contracts.types import Conditions, Rollout, Sample
from flowfactory.metrics.instruments import Instruments
from flowfactory.plan.working import keeps_means
from flowfactory.policy.policy import ModelPolicy
from flowfactory.processes.distributed import Processes
from flowfactory.rewards.scoring import Judge
from flowfactory.rewards.session import Scored
from flowfactory.sampling.source import Member
from flowfactory.sampling.trajectories import Trajectories
from flowfactory.spec.tables import Spec


@attrs.frozen(eq=False)
class Studio:
    """All that a sample passes on its way from noise to its scores."""

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

    def keys(self, stream: str, epoch: int, members: Sequence[Member]) -> list[Key]:
        """What the random stream "start" or "steps" of each member is for; groups may share where they start."""
        shared = stream == "start" and self.spec.sampling.shared_noise
        return [
            (
                *(self.spec.run.seed, stream, epoch, m.group.slot),
                *(() if shared else (m.replica,)),
                *((m.group.round,) if m.group.round else ()),
            )
            for m in members
        ]

    def shown(
        self, members: Sequence[Member], places: Sequence[int], latents: Tensor, conditions: Conditions, decoded: bool
    ) -> list[Sample]:
        """What rewards are shown of latents `(B, …)`.

        Args:
            members: whose they are `(B,)`. places: of each in its group. decoded: whether anybody looks at media.
        """
        media = latents.new_empty((len(latents), 0))
        if decoded:
            with self.instruments.clock("decode"):
                stay = self.judge.scores_on(latents.device)
                some = torch.split(latents, self.spec.sampling.micro_batch)
                media = torch.cat([self.policy.decode(x, stay) for x in some])
        rows = [self.conditions.rows[m.group.row] for m in members]
        at = [(m.group.slot, place) for m, place in zip(members, places, strict=True)]
        return self.judge.samples(rows, at, media, latents, conditions)

    def kept(self, made: Rollout) -> Rollout:
        """Trajectories where they wait until they are learned from, with what is needed of them."""
        if not keeps_means(self.spec):
            made = attrs.evolve(made, means={})
        return made.to(torch.device("cpu")) if "trajectories" in self.spec.memory.offload else made


@attrs.frozen(eq=False)
class Made:
    """What passed the network together, for some members.

    parts: the trajectories to learn from, those of a member side by side.
    columns: what is scored: in each column as many samples of every member, those of a member side by side.
    """

    parts: Sequence[Rollout]
    columns: Sequence[Sequence[Sample]]
    finals: Sequence[Tensor]
    """The latents that samples were decoded from."""


@attrs.frozen(eq=False)
class Compared:
    """What a trainer compares: `N` rows over all processes, and which of them have no part in it."""

    scores: Scores
    groups: Tensor
    dropped: Tensor


class Way(Protocol):
    """How the members of groups are made and scored.

    columns: of the samples that are scored. ends: how many of them, the first, hold what a reward is for; further ones
        are looks. leaves: how many samples a member has in each. together: how many members are scored in one piece.
    parents: for each row to learn from that a member gives, in order, which other one it goes on from; -1: none.
    """

    @property
    def columns(self) -> int: ...
    @property
    def ends(self) -> int: ...
    @property
    def leaves(self) -> int: ...
    @property
    def together(self) -> int: ...
    @property
    def parents(self) -> Sequence[int]: ...

    def pieces(self, epoch: int, members: Sequence[Member]) -> list[Sequence[Member]]:
        """The members that pass the network together."""
        ...

    def sample(self, epoch: int, members: Sequence[Member], decoded: bool) -> Made:
        """Make one such piece.

        Args:
            decoded: whether anybody reads media; they are not decoded otherwise.
        """
        ...

    def compared(
        self,
        values: Mapping[str, Tensor],
        dropped: Tensor,
        everyone: Scored,
        members: Sequence[Member],
        rows: Trajectories,
    ) -> Compared:
        """What the trainer sees of the scores of an epoch.

        Args:
            values, dropped: of what ends in a sample. everyone: all scores, `(N, columns, leaves)`, over all processes.
            members, rows: those of this process, and what it learns from.
        """
        ...
