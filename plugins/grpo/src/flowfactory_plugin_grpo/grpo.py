"""Flow-GRPO (Liu et al. 2025, arXiv:2505.05470): PPO on the stochastic steps of the sampler.

    rho = p_theta(x' | x) / p_old(x' | x)
    L   = max(-A rho, -A clip(rho, 1 - low, 1 + high)) + beta KL(p_theta || p_ref)

per stored step; `p(x' | x)` is the scheduler's Gaussian, its log-density averaged over elements. Optionally the policy
part is weighted by the step's noise level, as in TempFlow-GRPO (He et al. 2025, arXiv:2508.04324).
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
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
        parts, metrics = {"policy": surrogate.mean()}, ratio_metrics(log_ratio.detach(), self.spec)
        if term.reference is not None:
            kl = divergence(at, self.spec.kl, v, term.reference)
            parts["kl"], metrics["kl"] = self.spec.kl_beta * kl, kl.detach()
        return Loss(parts, metrics)
