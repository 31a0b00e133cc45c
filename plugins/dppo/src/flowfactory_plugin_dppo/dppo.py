"""Flow-DPPO (arXiv:2606.11025): policy gradients, masked by how far the policy has come from the one that sampled.

    rho  = p_theta(x' | x) / p_old(x' | x)              KL = mean (mu - mu_old)² / (2 S²)
    drop = KL >= delta  and  (rho > 1 and A > 0  or  rho < 1 and A < 0)
    L    = mean (0 where dropped, else -A rho)

per stored step; `p(x' | x)` is the scheduler's Gaussian with mean `mu` and standard deviation `S`, its log-density
averaged over elements. The paper writes the squared norm; its code, for which `delta` is published, has the mean. What
is dropped stays in the mean of `L`. The mask has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from flowfactory import (
    Batch,
    Draws,
    Loss,
    Old,
    Policy,
    Trainer,
    Transition,
    old_logprob,
    old_mean,
    per_sample_mean,
    replayed,
)
from torch import Tensor

from flowfactory_plugin_dppo import DPPOSpec


@attrs.frozen(eq=False)
class Term:
    """One stochastic step, and what it was like when it was replayed, if it was."""

    step: int
    old: Old | None


class DPPO(Trainer[DPPOSpec]):
    """Flow-DPPO, one term per stochastic step; only for schedulers that score by the Gaussian's density."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        at = {step: Transition.of(batch, step) for step in batch.rollout.steps}
        return [Term(step, replayed(policy, batch, own, self.spec)) for step, own in at.items()]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        at = Transition.of(batch, term.step)
        v = at.velocity(policy, batch)
        moments, logprob = at.moments(v), at.score(v)
        log_ratio = logprob - old_logprob(at, logprob, term.old, self.spec)
        mean, A = moments.mean.detach(), batch.advantages.to(log_ratio)
        divergence = per_sample_mean((mean - old_mean(batch, at, mean, term.old)) ** 2 / (2 * moments.std**2))
        far, ratio = divergence >= self.spec.delta, log_ratio.detach().exp()
        above, below = far & (ratio > 1) & (A > 0), far & (ratio < 1) & (A < 0)
        metrics = {
            "ratio": ratio.mean(),
            "ratio_deviation": (ratio - 1).abs().max(),
            "divergence": divergence.mean(),
            "dropped_above": above.float().mean(),
            "dropped_below": below.float().mean(),
        }
        return Loss({"policy": masked(log_ratio, A, above | below).mean()}, metrics)


def masked(log_ratio: Tensor, advantages: Tensor, dropped: Tensor) -> Tensor:
    """`-A rho` `(B,)`, and 0 for those dropped, whose ratio may be too large for a float: it is not even formed."""
    kept = torch.where(dropped, 0.0, log_ratio)
    return torch.where(dropped, 0.0, -advantages * kept.exp())
