"""What an epoch learns from, whoever made it: rollouts, or what the rows of the data show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import attrs
import torch
from torch import Tensor

from flowfactory.processes.stop import StopRequest
from flowfactory.sampling.epochs import Group
from flowfactory.sampling.trajectories import Trajectories

SequenceT = TypeVar("SequenceT", bound=Sequence[Any])


@attrs.frozen
class Member:
    """One sample: its group and its place there."""

    group: Group
    replica: int


@attrs.frozen(eq=False)
class Collected:
    """One process's share of an epoch, in the order of the updates: `N` samples.

    scores: by label `(N,)` float64, NaN where a reward does not apply or failed.
    advantages: `(N,)` float64, or `(N, n)` of each stochastic step; NaN for what is to be left out.
    metrics: of the whole epoch.
    parents: of branches, which are numbered within their group as its members are: the number of the one each goes on
        from, -1: none.
    """

    epoch: int
    members: Sequence[Member]
    trajectories: Trajectories
    scores: Mapping[str, Tensor]
    advantages: Tensor
    metrics: dict[str, float]
    parents: Tensor | None = None


class Source(Protocol):
    """Makes what an epoch learns from."""

    def collect(self, epoch: int, stop: StopRequest) -> Collected:
        """This process's share of an epoch.

        Raises:
            Stopped: a signal arrived; no weight has changed since the last epoch.
            RewardError: a reward failed past what its table allows; likewise.
        """
        ...


def members_of(groups: Sequence[Group], size: int) -> list[Member]:
    """The samples of some groups, in order."""
    return [Member(group, replica) for group in groups for replica in range(size)]


def places(members: Sequence[Member], size: int) -> Tensor:
    """The number `(N,)` of each member among all samples of the epoch, by slot and replica."""
    return torch.tensor([m.group.slot * size + m.replica for m in members], dtype=torch.long)


def group_counts(groups: Mapping[str, int]) -> dict[str, float]:
    """`source/<source>/groups`: how many groups of an epoch are from each; nothing where sources have no names."""
    return {f"source/{source}/groups": float(count) for source, count in sorted(groups.items()) if source}


def chunks(items: SequenceT, size: int) -> Iterator[SequenceT]:
    """`items` in pieces of `size`; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]  # type: ignore[misc]
