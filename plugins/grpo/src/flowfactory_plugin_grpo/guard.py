"""GRPO-Guard (Wang et al. 2025, arXiv:2510.22319): Flow-GRPO with a ratio that is centred at every step.

    ln rho = S (ln p - ln p_old + mean(dmu²) / (2 S²)) = mean(z dmu),   z = (x' - mu_old) / S,   dmu = mu - mu_old
    L      = max(-A rho, -A clip(rho, 1 - low, 1 + high)) / D

The plain log-ratio is biased below 0 by `mean(dmu²) / (2 S²)` and its spread differs from step to step; this one has
mean 0 under the old policy and loses `S`. Dividing by `D = sigma - sigma'` (`reweight`) makes the gradients' scale the
same at every step too. Bias and scale are taken per sample, as the paper has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowfactory import (
    Batch,
    ClippedTerm,
    Draws,
    Loss,
    Policy,
    Trainer,
    Transition,
    clipped,
    clipped_terms,
    divergence,
    old_mean,
    per_sample_mean,
    ratio_metrics,
)

from flowfactory_plugin_grpo import GRPOGuardSpec


class GRPOGuard(Trainer[GRPOGuardSpec]):
    """GRPO-Guard, one term per stochastic step; only for schedulers that score by the Gaussian's density."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[ClippedTerm]:
        return clipped_terms(policy, batch, self.spec)

    def loss(self, policy: Policy, batch: Batch, term: ClippedTerm) -> Loss:
        at = Transition.of(batch, term.step)
        v = at.velocity(policy, batch)
        moments = at.moments(v)
        mean_old = old_mean(batch, at, moments.mean, term.old)
        z = (at.x_next.float() - mean_old) / moments.std
        log_ratio = per_sample_mean(z * (moments.mean - mean_old))
        surrogate = clipped(log_ratio.exp(), batch.advantages, self.spec)
        if self.spec.reweight:
            surrogate = surrogate / (at.sigma - at.sigma_next)
        parts, metrics = {"policy": surrogate.mean()}, ratio_metrics(log_ratio.detach(), self.spec, batch.on_policy)
        if term.reference is not None:
            kl = divergence(at, self.spec.kl, v, term.reference)
            parts["kl"], metrics["kl"] = self.spec.kl_beta * kl, kl.detach()
        return Loss(parts, metrics)
