"""DiffusionNFT (Zheng et al. 2025, arXiv:2509.16117): contrast good and bad samples on the forward process.

With `x = (1 - sigma) x0 + sigma e`, `u = e - x0` and `r` in [0, 1] how good the sample is:

    v+ = (1 - beta) v_old + beta v          v- = (1 + beta) v_old - beta v
    l± = mean(E±²) / max(mean|E±|, 1e-5)    E± = sigma (u - v±), the error of the data estimate
    L  = m mean((r l+ + (1 - r) l-) / beta) + kl_beta mean (v - v_ref)²

with `m` the advantage clip, and no gradient through the divisors. The paper's display has plain squared velocity errors
instead of `l±`; this is the authors' code. Squared errors are float64, as there.
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
    Update,
    levels_and_noise,
    like_latents,
    noised,
    per_sample_mean,
    velocities,
)
from torch import Tensor

from flowfactory_plugin_nft import NFTSpec


@attrs.frozen(eq=False)
class Term:
    """Noise levels `(B,)`, noise `(B, …)`, and the velocities of the old and the reference weights there."""

    sigma: Tensor
    noise: Tensor
    old: Tensor
    reference: Tensor | None


class NFT(Trainer[NFTSpec]):
    """DiffusionNFT, one term per noise level."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        drawn = levels_and_noise(self.spec.times, batch.rollout, draws)
        reference: Sequence[Tensor | None] = [None] * len(drawn)
        with policy.using("old"):
            old = velocities(policy, batch, drawn)
        if self.spec.kl_beta:
            with policy.using("reference"):
                reference = velocities(policy, batch, drawn)
        return [Term(*at, v, v_ref) for at, v, v_ref in zip(drawn, old, reference, strict=True)]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        x0, spec = batch.rollout.final.float(), self.spec
        v = policy.velocity(noised(x0, term.noise, term.sigma), term.sigma, batch.conditions)
        r = optimality(batch.advantages, spec)
        positive, negative = contrast(v, term.old, term.noise - x0, term.sigma, spec.beta)
        policy_loss = spec.adv_clip * ((r * positive + (1 - r) * negative) / spec.beta).mean()
        parts = {"policy": policy_loss}
        metrics = {
            "optimality": r.mean(),
            "loss_positive": positive.detach().mean(),
            "loss_negative": negative.detach().mean(),
            "drift": per_sample_mean((v.detach().float() - term.old.float()) ** 2).mean(),
        }
        if term.reference is not None:
            divergence = per_sample_mean((v.float() - term.reference.float()) ** 2).mean()
            parts["kl"], metrics["kl"] = spec.kl_beta * divergence, divergence.detach()
        return Loss(parts, metrics)

    def after_update(self, policy: Policy, update: Update) -> None:
        if update.last:
            policy.move("old", self.spec.old.at(update.step))


def optimality(advantages: Tensor, spec: NFTSpec) -> Tensor:
    """How good a sample is, `(B,)` in [0, 1]: `1/2` for an advantage of 0, 1 from `adv_clip` on."""
    m = spec.adv_clip
    A = advantages.double().clamp(0.0 if spec.mode == "positive" else -m, 0.0 if spec.mode == "negative" else m)
    if spec.mode == "one":
        A = (A > 0).double()
    if spec.mode == "binary":
        A = A.sign()
    return (A / (2 * m) + 0.5).clamp(0, 1)


def contrast(v: Tensor, old: Tensor, u: Tensor, sigma: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """`l+` and `l-`, each `(B,)` float64; gradients only through `v` `(B, …)`, and not through the divisors."""
    v, old, u = v.double(), old.detach().double(), u.double()
    scale = like_latents(sigma, v).double()
    losses = []
    for implicit in ((1 - beta) * old + beta * v, (1 + beta) * old - beta * v):
        error = scale * (u - implicit)
        divisor = per_sample_mean(error.detach().abs()).clamp(min=1e-5)
        losses.append(per_sample_mean(error**2) / divisor)
    return losses[0], losses[1]
