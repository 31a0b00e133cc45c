"""Centered Reward Distillation (Zhu et al. 2026, arXiv:2603.14128): likelihoods are to rise as rewards say, no further.

With `x = (1 - sigma) x0 + sigma e`, `u = e - x0`, and `q` in [0, 1] how good a sample is:

    R = mean |v_old - u|² / w_old - mean |v - u|² / w,      w = max(mean |v - u|, 1e-5)
    L = m / beta mean (beta (R - <R>) - (q - <q>))² + mean b mean |v - v_ref|²

`R` is how much likelier a sample has become: its implicit reward. `<.>` is the mean over the sample's group, in which a
normaliser that nobody knows cancels. `m` is the advantage clip, and `b = 1e-4 + q (kl_beta - 1e-4)`. Neither `w` nor
`<R>` has a gradient. With a temperature `T`, `L` is the mean of two, their `<.>` weighted by `softmax(±q / T)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from flowfactory import (
    Batch,
    Draws,
    Loss,
    Policy,
    Trainer,
    Update,
    averaging,
    levels_and_noise,
    noised,
    over_groups,
    per_sample_mean,
    velocities,
)
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from flowfactory_plugin_crd import CRDSpec

LEAST = 1e-4
"""The weight of the distance from the reference for the worst samples, where it is adaptive."""


@attrs.frozen(eq=False)
class Term:
    """Noise levels `(B,)`, noise `(B, …)`, and the velocities of the old and the reference weights there."""

    sigma: Tensor
    noise: Tensor
    old: Tensor
    reference: Tensor | None


class CRD(Trainer[CRDSpec]):
    """Centered Reward Distillation, one term per noise level."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        spec, drawn = self.spec, levels_and_noise(self.spec.times, batch.rollout, draws)
        reference: Sequence[Tensor | None] = [None] * len(drawn)
        with policy.using("old"):
            old = velocities(policy, batch, drawn, spec.guidance)
        if spec.kl_beta:
            with policy.using("reference"):
                reference = velocities(policy, batch, drawn, spec.reference_guidance)
        return [Term(*at, v, v_ref) for at, v, v_ref in zip(drawn, old, reference, strict=True)]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        x0, spec = batch.rollout.final.float(), self.spec
        v = policy.velocity(noised(x0, term.noise, term.sigma), term.sigma, batch.conditions, spec.guidance)
        u, q = term.noise - x0, optimality(batch.advantages, spec.adv_clip)
        R = log_likelihood(v, u, spec.adaptive) - log_likelihood(term.old, u, spec.adaptive)
        groups, means = batch.groups, centres(batch.groups, q, spec.temperature)
        policy_loss = torch.stack([over_groups(mismatch(R, q, mean, spec), groups) for mean in means]).mean()
        parts = {"policy": spec.adv_clip / spec.beta * policy_loss}
        metrics = {
            "optimality": q.mean(),
            "implicit_reward": R.detach().mean(),
            "drift": squared(v.detach(), term.old).mean(),
        }
        if term.reference is not None:
            distance = squared(v, term.reference)
            weight = LEAST + q * (spec.kl_beta - LEAST) if spec.adaptive_kl else torch.full_like(q, spec.kl_beta)
            parts["kl"], metrics["kl"] = over_groups(weight * distance, groups), distance.detach().mean()
        return Loss(parts, metrics)

    def after_update(self, policy: Policy, update: Update) -> None:
        if update.last:
            policy.move("old", self.spec.old.at(update.step))
            if self.needs.rollout == "sampler":
                policy.move("sampler", self.spec.sampler.at(update.step))


def optimality(advantages: Tensor, most: float) -> Tensor:
    """How good a sample is, `(B,)` in [0, 1]: `1/2` for an advantage of 0, 1 from `most` on."""
    return advantages.double().clamp(-most, most) / (2 * most) + 0.5


def squared(v: Tensor, u: Tensor) -> Tensor:
    """The mean squared difference of velocities `(B, …)`, `(B,)` float64."""
    return per_sample_mean((v.double() - u.double()) ** 2)


def log_likelihood(v: Tensor, u: Tensor, adaptive: bool) -> Tensor:
    """`-mean |v - u|²` `(B,)` float64, divided by the mean absolute difference if adaptive."""
    size = per_sample_mean((v.detach().double() - u.double()).abs()).clamp(min=1e-5)
    return -squared(v, u) / (size if adaptive else 1.0)


def centres(groups: Tensor, q: Tensor, temperature: float | None) -> list[Tensor]:
    """What makes of numbers `(B,)` the centres of each sample's group, by matrices `(B, B)`: one, or one a pool."""
    if temperature is None:
        return [averaging(groups)]
    return [averaging(groups, sign * q / temperature) for sign in (1, -1)]


def mismatch(R: Tensor, q: Tensor, mean: Tensor, spec: CRDSpec) -> Tensor:
    """How far implicit rewards `(B,)` are from given ones, both centred by `mean` `(B, B)`."""
    implicit, given = spec.beta * (R - mean @ R.detach()), q - mean @ q
    if spec.loss == "bce":
        return binary_cross_entropy_with_logits(implicit, torch.sigmoid(given), reduction="none")
    return (implicit - given) ** 2
