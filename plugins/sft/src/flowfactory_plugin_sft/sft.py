"""Supervised fine-tuning by flow matching (Esser et al. 2024, arXiv:2403.03206): the loss of pretraining.

With `x = (1 - sigma) x0 + sigma e`, for media `x0` of the data:

    L = mean w(sigma) (v(x) - (e - x0))²                                    w = 1, 1 / sigma² or cosmap
    L = mean w(sigma) (X0 - x0)²,   X0 = x - sigma v(x)                     preconditioned: sigma² times the above

Means are over elements and samples, and not divided by the mean weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
from flowfactory import Batch, Draws, Loss, Policy, Trainer, levels_and_noise, noised, per_sample_mean
from torch import Tensor

from flowfactory_plugin_sft import SFTSpec


@attrs.frozen(eq=False)
class Term:
    """Noise levels `(B,)` and noise `(B, …)`."""

    sigma: Tensor
    noise: Tensor


class SFT(Trainer[SFTSpec]):
    """Flow matching on what the rows of the data show, one term per noise level."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        return [Term(*at) for at in levels_and_noise(self.spec.times, batch.rollout, draws)]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        x0 = batch.rollout.final.float()
        v = policy.velocity(noised(x0, term.noise, term.sigma), term.sigma, batch.conditions, self.spec.guidance)
        error = per_sample_mean((v.float() - (term.noise - x0)) ** 2)
        weight = weights(term.sigma, self.spec)
        return Loss({"matching": (weight * error).mean()}, {"error": error.detach().mean(), "weight": weight.mean()})


def weights(sigma: Tensor, spec: SFTSpec) -> Tensor:
    """How much the squared error of a velocity counts at each level, `(B,)`."""
    power = 2 * spec.precondition - 2 * (spec.weighting == "sigma_sqrt")
    cosmap = 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    return sigma**power * (cosmap if spec.weighting == "cosmap" else 1.0)
