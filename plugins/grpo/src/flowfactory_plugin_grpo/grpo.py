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
from flowfactory import Batch, Draws, Loss, Policy, Trainer, Transition
from torch import Tensor

from flowfactory_plugin_grpo import GRPOSpec
from flowfactory_plugin_grpo.clipping import clipped, divergence, ratio_metrics, reference_velocity


@attrs.frozen(eq=False)
class Term:
    """One stochastic step, and the reference's velocity `(B, …)` on it if the divergence has a weight."""

    step: int
    reference: Tensor | None


class GRPO(Trainer[GRPOSpec]):
    """Flow-GRPO, one term per stochastic step."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        beta = self.spec.kl_beta
        return [
            Term(step, reference_velocity(policy, batch, Transition.of(batch, step), beta))
            for step in batch.rollout.steps
        ]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        at = Transition.of(batch, term.step)
        v = at.velocity(policy, batch)
        log_ratio = at.score(v) - at.logprob
        surrogate = clipped(log_ratio.exp(), batch.advantages, self.spec)
        if self.spec.noise_weight is not None:
            surrogate = self.spec.noise_weight * at.std() * surrogate
        if self.spec.level:
            surrogate = levelled(batch, term.step) * surrogate
        parts, metrics = {"policy": surrogate.mean()}, ratio_metrics(log_ratio.detach(), self.spec)
        if term.reference is not None:
            kl = divergence(at, self.spec.kl, v, term.reference)
            parts["kl"], metrics["kl"] = self.spec.kl_beta * kl, kl.detach()
        return Loss(parts, metrics)


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
