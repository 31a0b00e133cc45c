"""Policy gradients on the stochastic steps of the sampler (Williams 1992), one term per step:

    rho = p(x' | x) / p_old(x' | x)
    L   = -mean A rho + kl_beta mean (v - v_ref)²

with `A` the advantage and `v_ref` the velocity of the weights before training.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from flowfactory import Batch, Draws, Loss, Policy, StochasticScheduler, Trainer
from torch import Tensor

from {{ cookiecutter.__module }} import {{ cookiecutter.__class }}Spec


@attrs.frozen(eq=False)
class Term:
    """One stored step, and the reference's velocity `(B, …)` there if it counts."""

    step: int
    reference: Tensor | None


class {{ cookiecutter.__class }}(Trainer[{{ cookiecutter.__class }}Spec]):
    """Policy gradients, one term per stochastic step."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        return [Term(step, self._reference(policy, batch, step)) for step in batch.rollout.steps]

    def _reference(self, policy: Policy, batch: Batch, step: int) -> Tensor | None:
        if not self.spec.kl_beta:
            return None
        with policy.using("reference"):
            return policy.velocity(batch.rollout.latents[step], levels(batch, step)[0], batch.conditions)

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        assert isinstance(batch.scheduler, StochasticScheduler)
        x, x_next = batch.rollout.latents[term.step], batch.rollout.latents[term.step + 1]
        sigma, sigma_next = levels(batch, term.step)
        v = policy.velocity(x, sigma, batch.conditions)
        logprob = batch.scheduler.logprob(v, x, x_next, sigma, sigma_next, batch.rollout.ceiling)
        ratio = (logprob - batch.rollout.logprobs[term.step]).exp()
        parts = {"policy": -(batch.advantages * ratio).mean()}
        if term.reference is not None:
            parts["kl"] = self.spec.kl_beta * ((v.float() - term.reference.float()) ** 2).mean()
        deviation = (ratio.detach() - 1).abs().max()
        return Loss(parts, {"ratio": ratio.detach().mean(), "ratio_deviation": deviation})


def levels(batch: Batch, step: int) -> tuple[Tensor, Tensor]:
    """The noise levels `(B,)` a step goes from and to."""
    x = batch.rollout.latents[step]
    sigma, sigma_next = batch.rollout.sigmas[step : step + 2].to(x.device)[:, None].expand(-1, len(x))
    return sigma, sigma_next
