"""The trajectories of many samples, some of which may have other stochastic steps than others."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.types import Rollout


@attrs.frozen(eq=False)
class Trajectories:
    """Rollouts of `N` samples, numbered in order.

    parts: one for each choice of stochastic steps. part: `(N,)` which of them each sample is in. place: `(N,)` where.
    """

    parts: Sequence[Rollout]
    part: Tensor
    place: Tensor

    @classmethod
    def joined(cls, rollouts: Sequence[Rollout]) -> Trajectories:
        """The samples of some rollouts over the same noise levels, in order."""
        alike: dict[tuple[int, ...], list[Rollout]] = {}
        part, place = [], []
        for rollout in rollouts:
            same, count = alike.setdefault(rollout.steps, []), len(rollout)
            before = sum(len(other) for other in same)
            part.append(torch.full((count,), list(alike).index(rollout.steps)))
            place.append(torch.arange(before, before + count))
            same.append(rollout)
        none = torch.zeros(0, dtype=torch.long)
        return cls([_cat(same) for same in alike.values()], torch.cat([none, *part]), torch.cat([none, *place]))

    def __getitem__(self, samples: Sequence[int]) -> Rollout:
        """Some samples, all of which have the same stochastic steps."""
        chosen = torch.tensor(samples)
        (part,) = set(self.part[chosen].tolist())
        rollout: Rollout = self.parts[part][self.place[chosen]]
        return rollout

    def ordered(self, samples: Sequence[int]) -> Trajectories:
        """The samples with these numbers, in this order."""
        return Trajectories(self.parts, self.part[list(samples)], self.place[list(samples)])

    def logprobs(self) -> Tensor:
        """The log-probability of each sample's first stochastic step, `(N,)`."""
        found = torch.zeros(len(self.part))
        for number, part in enumerate(self.parts):
            own = self.part == number
            found[own] = part.logprobs[part.steps[0]].cpu()[self.place[own]]
        return found

    def steps(self, sample: int) -> tuple[int, ...]:
        """The stochastic steps of a sample."""
        return self.parts[int(self.part[sample])].steps


def _cat(parts: Sequence[Rollout]) -> Rollout:
    first = parts[0]
    return attrs.evolve(
        first,
        latents={i: torch.cat([part.latents[i] for part in parts]) for i in first.latents},
        logprobs={i: torch.cat([part.logprobs[i] for part in parts]) for i in first.logprobs},
        means={i: torch.cat([part.means[i] for part in parts]) for i in first.means},
    )
