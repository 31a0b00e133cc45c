"""Flow-GRPO (Liu et al. 2025, arXiv:2505.05470): PPO on the stochastic steps of the sampler.

    rho = p_theta(x' | x) / p_old(x' | x)
    L   = max(-A rho, -A clip(rho, 1 - low, 1 + high)) + beta KL(p_theta || p_ref)

per stored step; `p(x' | x)` is the scheduler's Gaussian, its log-density averaged over elements. Optionally the policy
part is weighted by the step's noise level, as in TempFlow-GRPO (He et al. 2025, arXiv:2508.04324), or by its
`lambda = S / |d mu / d v|`, as in Flash-GRPO (arXiv:2605.15980): the slope of `ln p` in `v` is the noise over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from flowfactory import (
    Batch,
    ClippedTerm,
    Draws,
    Loss,
    Policy,
    Trainer,
    Transition,
    clipped_loss,
    clipped_terms,
)
from torch import Tensor

from flowfactory_plugin_grpo import GRPOSpec


class GRPO(Trainer[GRPOSpec]):
    """Flow-GRPO, one term per stochastic step."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[ClippedTerm]:
        return clipped_terms(policy, batch, self.spec)

    def loss(self, policy: Policy, batch: Batch, term: ClippedTerm) -> Loss:
        weights: list[Tensor | float] = []
        if self.spec.noise_weight is not None:
            weights.append(self.spec.noise_weight * Transition.of(batch, term.step).std())
        if self.spec.level:
            weights.append(levelled(batch, term.step))
        return clipped_loss(policy, batch, term, self.spec, *weights)


def levelled(batch: Batch, step: int) -> float:
    """The lambda of a step, over its mean over all that the update trains at."""
    lambdas = {one: rectification(batch, one) for one in {*batch.shares, step}}
    return lambdas[step] / sum(share * lambdas[one] for one, share in batch.shares.items())


def rectification(batch: Batch, step: int) -> float:
    """The lambda of a step; its mean is linear in the velocity, by one factor for all elements."""
    x, levels = torch.zeros(1, 1), batch.rollout.sigmas[step : step + 2, None]
    at = attrs.evolve(Transition.of(batch, batch.rollout.steps[0]), x=x, sigma=levels[0], sigma_next=levels[1])
    still, moved = at.moments(x), at.moments(x + 1)
    return float(still.std / (still.mean - moved.mean).abs())
