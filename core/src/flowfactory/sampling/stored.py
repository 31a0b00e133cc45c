"""What the rows of the data show: their media, encoded once. Nothing is sampled and nothing scored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.types import Rollout, Row
from flowfactory.data.sources import Pool, counted, pools
from flowfactory.policy.policy import ModelPolicy
from flowfactory.processes.distributed import Processes
from flowfactory.processes.stop import StopRequest
from flowfactory.sampling.epochs import plan_epoch, share
from flowfactory.sampling.source import Collected, group_counts, members_of
from flowfactory.sampling.trajectories import Trajectories
from flowfactory.spec.tables import Spec

CHOSEN, REJECTED = 1.0, -1.0
"""The advantages of a pair."""


class Targets(Protocol):
    """The latents of what rows show."""

    def batch(self, rows: Sequence[int]) -> Tensor:
        """Those of the rows with these numbers, repeats allowed, `(R, k, …)`: `k` is 1, or 2 for pairs."""
        ...


@attrs.frozen(eq=False)
class Stored:
    """The source of offline training: each row is a group, a pair's chosen and rejected samples in this order."""

    spec: Spec
    processes: Processes
    rows: Sequence[Row]
    targets: Targets
    policy: ModelPolicy

    @cached_property
    def pools(self) -> Sequence[Pool]:
        """The sources of the data, as rows are drawn from them."""
        return pools(self.spec.data, self.rows)

    def collect(self, epoch: int, stop: StopRequest) -> Collected:
        """This process's share of an epoch; see `Source`."""
        spec, processes, size = self.spec, self.processes, self.spec.group
        stop.check(processes)
        everything = plan_epoch(spec.run.seed, epoch, self.pools, spec.sampling.prompts, spec.optimizer.updates)
        metrics = group_counts(counted(self.rows[group.row] for update in everything for group in update))
        mine = [group for update in share(everything, processes.team.number, processes.team.count) for group in update]
        latents = self.targets.batch([group.row for group in mine]).flatten(0, 1)
        sigmas = self.policy.sigmas(spec.sampling.steps)
        signs = [CHOSEN, REJECTED] if size == 2 else [0.0]
        advantages = torch.tensor(signs * len(mine), dtype=torch.float64)
        rollout = Rollout(sigmas, (), {len(sigmas) - 1: latents}, {})
        return Collected(epoch, members_of(mine, size), Trajectories.joined([rollout]), {}, advantages, metrics)
