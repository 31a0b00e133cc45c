"""Advantage Weighted Matching (Xue et al. 2025, arXiv:2509.25050): PPO with the matching loss as log-probability.

With `x = (1 - sigma) x0 + sigma e` and `l = mean (v - (e - x0))²`, per sample and noise level:

    lp  = -l, or another decreasing function of it: see `surrogate`
    rho = exp(lp - lp_old)
    L   = mean max(-A rho, -A clip(rho, 1 - low, 1 + high)) + kl_beta KL(v, v_ref) + average_beta KL(v, v_average)

At rho = 1 the gradient is that of `A l`, the paper's objective, up to the function. Old, new, reference and averaged
velocities see the same noise and noise levels. Squared errors are float64, as in the authors' code.
"""

from __future__ import annotations

import math
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
    levels_and_noise,
    noised,
    per_sample_mean,
    velocities,
)
from torch import Tensor

from flowfactory_plugin_awm import AWMSpec


@attrs.frozen(eq=False)
class Term:
    """Noise levels `(B,)`, noise `(B, …)`, and what other weights say there.

    logprob: of the sampling weights `(B,)` float64; `None` in the first update, where they are the current ones.
    anchors: by loss part, the velocity `(B, …)` to stay near, and the part's weight.
    """

    sigma: Tensor
    noise: Tensor
    logprob: Tensor | None
    anchors: dict[str, tuple[Tensor, float]]


class AWM(Trainer[AWMSpec]):
    """Advantage Weighted Matching, one term per noise level."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        x0, spec = batch.rollout.final.float(), self.spec
        drawn = levels_and_noise(spec.times, batch.rollout, draws)
        logprobs: Sequence[Tensor | None] = [None] * len(drawn)
        if not batch.on_policy:
            found = zip(velocities(policy, batch, drawn), drawn, strict=True)
            logprobs = [surrogate(v, noise - x0, sigma, spec) for v, (sigma, noise) in found]
        anchors = [dict[str, tuple[Tensor, float]]() for _ in drawn]
        for part, weights, beta in (("kl", "reference", spec.kl_beta), ("average", "average", spec.average_beta)):
            if beta:
                with policy.using(weights):
                    for own, v in zip(anchors, velocities(policy, batch, drawn), strict=True):
                        own[part] = v, beta
        return [Term(*at, *kept) for at, *kept in zip(drawn, logprobs, anchors, strict=True)]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        x0, spec = batch.rollout.final.float(), self.spec
        v = policy.velocity(noised(x0, term.noise, term.sigma), term.sigma, batch.conditions)
        logprob = surrogate(v, term.noise - x0, term.sigma, spec)
        ratio = (logprob - (logprob.detach() if term.logprob is None else term.logprob)).exp()
        A = batch.advantages.double().clamp(-spec.adv_clip, spec.adv_clip) / spec.adv_clip * spec.adv_max
        clipped = ratio.clamp(1 - spec.clip_low, 1 + spec.clip_high)
        parts = {"policy": torch.maximum(-A * ratio, -A * clipped).mean()}
        metrics = {
            "ratio": ratio.detach().mean(),
            "ratio_deviation": (ratio.detach() - 1).abs().max(),
            "clip_fraction": (clipped != ratio).double().mean(),
            "matching_loss": per_sample_mean((v.detach().double() - (term.noise - x0)) ** 2).mean(),
        }
        for part, (anchor, beta) in term.anchors.items():
            distance = per_sample_mean((v.double() - anchor.double()) ** 2)
            divergence = (distance * kl_weight(term.sigma, spec)).mean()
            parts[part], metrics[part] = beta * divergence, divergence.detach()
        return Loss(parts, metrics)

    def after_update(self, policy: Policy, update: Update) -> None:
        if update.last and self.spec.average_beta:
            policy.move("average", self.spec.average.at(update.step))


def surrogate(v: Tensor, u: Tensor, sigma: Tensor, spec: AWMSpec) -> Tensor:
    """The log-probability `(B,)` float64 of velocity `v` where `u` is the target, from `l = mean (v - u)²`."""
    error = per_sample_mean((v.double() - u.double()) ** 2)
    t, tiny = sigma.double(), 1e-10
    if spec.weighting == "huber":
        return -t * ((error + tiny).sqrt() - math.sqrt(tiny))
    if spec.weighting == "ghuber":
        return -t * ((error + tiny) ** spec.power - math.pow(tiny, spec.power)) / spec.power
    return -error * torch.pow(t, {"uniform": 0, "t": 1, "t2": 2}[spec.weighting])


def kl_weight(sigma: Tensor, spec: AWMSpec) -> Tensor:
    """What a squared velocity distance counts `(B,)`: 1, or `1 / (2 g²)` with `g` of Flow-SDE at eta 0.7."""
    t = sigma.double()
    if spec.kl == "uniform":
        return torch.ones_like(t)
    return (1 - t.clamp(max=0.99)) / (2 * 0.7**2 * t)
