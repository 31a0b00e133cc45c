"""GRPO-Guard (Wang et al. 2025, arXiv:2510.22319): Flow-GRPO with a ratio that is centred at every step.

    ln rho = S (ln p - ln p_old + mean(dmu²) / (2 S²)) = mean(z dmu),   z = (x' - mu_old) / S,   dmu = mu - mu_old
    L      = max(-A rho, -A clip(rho, 1 - low, 1 + high)) / D

The plain log-ratio is biased below 0 by `mean(dmu²) / (2 S²)` and its spread differs from step to step; this one has
mean 0 under the old policy and loses `S`. Dividing by `D = sigma - sigma'` (`reweight`) makes the gradients' scale the
same at every step too. Bias and scale are taken per sample, as the paper has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from flowfactory import (
    Batch,
    Draws,
    Loss,
    Policy,
    Trainer,
    Transition,
    clipped,
    divergence,
    per_sample_mean,
    ratio_metrics,
    reference_velocity,
)
from torch import Tensor

from flowfactory_plugin_grpo import GRPOGuardSpec


@attrs.frozen(eq=False)
class Term:
    """One stochastic step, the mean `(B, …)` it was drawn around, and the reference's velocity on it.

    mean: `None` in the first update, where it is the current mean.
    """

    step: int
    mean: Tensor | None
    reference: Tensor | None


class GRPOGuard(Trainer[GRPOGuardSpec]):
    """GRPO-Guard, one term per stochastic step; only for schedulers that score by the Gaussian's density."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        return [self._term(policy, batch, step) for step in batch.rollout.steps]

    def _term(self, policy: Policy, batch: Batch, step: int) -> Term:
        at = Transition.of(batch, step)
        mean = None if batch.on_policy else at.moments(at.velocity(policy, batch)).mean
        return Term(step, mean, reference_velocity(policy, batch, at, self.spec.kl_beta))

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        at = Transition.of(batch, term.step)
        v = at.velocity(policy, batch)
        moments = at.moments(v)
        mean_old = moments.mean.detach() if term.mean is None else term.mean
        z = (at.x_next.float() - mean_old) / moments.std
        log_ratio = per_sample_mean(z * (moments.mean - mean_old))
        surrogate = clipped(log_ratio.exp(), batch.advantages, self.spec)
        if self.spec.reweight:
            surrogate = surrogate / (at.sigma - at.sigma_next)
        parts, metrics = {"policy": surrogate.mean()}, ratio_metrics(log_ratio.detach(), self.spec)
        if term.reference is not None:
            kl = divergence(at, self.spec.kl, v, term.reference)
            parts["kl"], metrics["kl"] = self.spec.kl_beta * kl, kl.detach()
        return Loss(parts, metrics)
