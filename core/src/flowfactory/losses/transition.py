"""A stored stochastic step, as trainers that score it read it."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.scheduler import Field, Moments, StochasticScheduler
from flowfactory.contracts.trainer import Policy
from flowfactory.contracts.types import Batch, Conditions


@attrs.frozen(eq=False)
class Transition:
    """One stochastic step of a batch as it was sampled and stored: from `x` at `sigma` to `x_next` at `sigma_next`.

    x, x_next: `(B, …)` in the storage dtype. sigma, sigma_next: `(B,)` float32. logprob: `(B,)`, when it was sampled.
    mean: `(B, …)`, when it was sampled; where `Needs.old` is "means", and it is not the current one.
    """

    x: Tensor
    x_next: Tensor
    sigma: Tensor
    sigma_next: Tensor
    ceiling: float
    logprob: Tensor
    scheduler: StochasticScheduler[Any]
    mean: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, step: int) -> Transition:
        """The stored step of a batch.

        Raises:
            TypeError: its scheduler is deterministic.
        """
        rollout, scheduler = batch.rollout, batch.scheduler
        if not isinstance(scheduler, StochasticScheduler):
            raise TypeError(f"{type(scheduler).__name__} has no log-probabilities; use a stochastic scheduler")
        x = rollout.latents[step]
        sigma, sigma_next = rollout.sigmas[step : step + 2].to(x.device)[:, None].expand(-1, len(x))
        x_next, logprob, mean = rollout.latents[step + 1], rollout.logprobs[step], rollout.means.get(step)
        return cls(x, x_next, sigma, sigma_next, rollout.ceiling, logprob, scheduler, mean)

    def velocity(self, policy: Policy, batch: Batch) -> Tensor:
        """The policy's velocity `(B, …)` of this step."""
        return self.scheduler.look(field_of(policy, batch.conditions), self.x, self.sigma, self.sigma_next)

    def score(self, v: Tensor) -> Tensor:
        """Log-probability `(B,)` of this step with velocity `v`."""
        return self.scheduler.logprob(v, self.x, self.x_next, self.sigma, self.sigma_next, self.ceiling)

    def moments(self, v: Tensor) -> Moments:
        """The Gaussian from which this step is drawn, with velocity `v`."""
        return self.scheduler.moments_of(v, self.x, self.sigma, self.sigma_next, self.ceiling)

    def std(self) -> Tensor:
        """Total standard deviation `(B,)` of this step's noise."""
        return self.moments(torch.zeros_like(self.x)).std.flatten()


def field_of(policy: Policy, conditions: Conditions) -> Field:
    """The policy's velocity under some conditions."""
    return lambda x, sigma: policy.velocity(x, sigma, conditions)
