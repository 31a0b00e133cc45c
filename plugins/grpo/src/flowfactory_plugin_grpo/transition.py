"""What the clipped trainers share: a stored transition, PPO's objective, and the divergence from the reference."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from flowfactory import Batch, Moments, Policy, StochasticScheduler, per_sample_mean
from torch import Tensor

from flowfactory_plugin_grpo import ClippedSpec


@attrs.frozen(eq=False)
class Transition:
    """One stochastic step of a batch as it was sampled and stored: from `x` at `sigma` to `x_next` at `sigma_next`.

    x, x_next: `(B, …)` in the storage dtype. sigma, sigma_next: `(B,)` float32. logprob: `(B,)`, when it was sampled.
    """

    x: Tensor
    x_next: Tensor
    sigma: Tensor
    sigma_next: Tensor
    ceiling: float
    logprob: Tensor
    scheduler: StochasticScheduler[Any]

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
        return cls(x, rollout.latents[step + 1], sigma, sigma_next, rollout.ceiling, rollout.logprobs[step], scheduler)

    def velocity(self, policy: Policy, batch: Batch) -> Tensor:
        """The policy's velocity `(B, …)` where this step starts."""
        return policy.velocity(self.x, self.sigma, batch.conditions)

    def score(self, v: Tensor) -> Tensor:
        """Log-probability `(B,)` of this step under velocity `v`."""
        return self.scheduler.logprob(v, self.x, self.x_next, self.sigma, self.sigma_next, self.ceiling)

    def moments(self, v: Tensor) -> Moments:
        """The Gaussian this step is drawn from under velocity `v`."""
        return self.scheduler.moments_of(v, self.x, self.sigma, self.sigma_next, self.ceiling)

    def std(self) -> Tensor:
        """Total standard deviation `(B,)` of this step's noise."""
        return self.moments(torch.zeros_like(self.x)).std.flatten()

    def divergence(self, kind: str, v: Tensor, v_ref: Tensor) -> Tensor:
        """How far `v` is from `v_ref` on this step, averaged over elements and batch; see `ClippedSpec.kl`."""
        if kind == "v":
            return per_sample_mean((v.float() - v_ref.float()) ** 2).mean()
        moments, reference = self.moments(v), self.moments(v_ref)
        squared = (moments.mean - reference.mean) ** 2
        return per_sample_mean(squared / (2 * moments.std**2) if kind == "exact" else squared).mean()


def reference_velocity(policy: Policy, batch: Batch, at: Transition, kl_beta: float) -> Tensor | None:
    """The reference weights' velocity, or `None` when the divergence has no weight."""
    if not kl_beta:
        return None
    with policy.using("reference"):
        return at.velocity(policy, batch)


def clipped(ratio: Tensor, advantages: Tensor, spec: ClippedSpec) -> Tensor:
    """PPO's pessimistic loss `(B,)`: `max(-A ratio, -A clip(ratio))`, with `A` clipped too."""
    A = advantages.to(ratio).clamp(-spec.adv_clip, spec.adv_clip)
    return torch.maximum(-A * ratio, -A * ratio.clamp(1 - spec.clip_low, 1 + spec.clip_high))


@torch.no_grad()
def ratio_metrics(log_ratio: Tensor, spec: ClippedSpec) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled."""
    ratio = log_ratio.exp()
    outside = (ratio > 1 + spec.clip_high) | (ratio < 1 - spec.clip_low)
    return {
        "ratio": ratio.mean(),
        "ratio_deviation": (ratio - 1).abs().max(),
        "clip_fraction": outside.float().mean(),
        "approx_kl": 0.5 * (log_ratio**2).mean(),
    }
