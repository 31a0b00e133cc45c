"""DGPO (Luo et al. 2025, arXiv:2510.08425): the better samples of a group over its worse ones, all at once.

With `x = (1 - sigma) x0 + sigma e`, one level `sigma` and one noise `e` for all of a group, and advantages `A`:

    d = mean |v(x) - (e - x0)|²,        d_old and d_base by the old weights and those to be compared with
    W = sigmoid(beta mean A (d - d_base))                                    the mean over the group; no gradient
    L = mean over groups of  mean over the group of  W A d + kl_beta mean |v - v_ref|²

`-log sigmoid(-beta mean A (d - d_base))` is how unlikely it is that the better ones are preferred; `W A d` has its
gradient, divided by beta. With `rho = exp(d_old - d)`, a sample of `A > 0` and `rho > 1 + high`, or of `A <= 0` and
`rho < 1 - low`, gives no gradient; it stays in `W` and in the mean. This is the authors' code; the paper has no `rho`.
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

from flowfactory_plugin_dgpo import DGPOSpec


@attrs.frozen(eq=False)
class Term:
    """Noise levels `(B,)` and noise `(B, …)`, the same for all of a group, and what other weights say there.

    old, base: errors `(B,)`. reference: velocities to stay near `(B, …)`, if there is a weight for that.
    """

    sigma: Tensor
    noise: Tensor
    old: Tensor
    base: Tensor
    reference: Tensor | None


class DGPO(Trainer[DGPOSpec]):
    """Direct Group Preference Optimization, one term per noise level."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        x0, spec = batch.rollout.final.float(), self.spec
        drawn = levels_and_noise(spec.times, batch.rollout, draws)

        def errors(found: Sequence[Tensor]) -> list[Tensor]:
            return [error(v, noise - x0) for v, (_, noise) in zip(found, drawn, strict=True)]

        reference: Sequence[Tensor | None] = [None] * len(drawn)
        with policy.using("old"):
            old = base = errors(velocities(policy, batch, drawn, spec.guidance))
        if self.needs.reference:
            with policy.using("reference"):
                found = velocities(policy, batch, drawn, spec.reference_guidance)
            base = old if spec.baseline == "old" else errors(found)
            reference = found if spec.kl_beta else reference
        return [Term(*at, *found) for at, *found in zip(drawn, old, base, reference, strict=True)]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        x0, spec = batch.rollout.final.float(), self.spec
        v = policy.velocity(noised(x0, term.noise, term.sigma), term.sigma, batch.conditions, spec.guidance)
        d, groups = error(v, term.noise - x0), batch.groups
        now, A = d.detach(), batch.advantages.double().clamp(-spec.adv_clip, spec.adv_clip)
        weight = torch.sigmoid(spec.beta * averaging(groups) @ (A * (now - term.base)))
        ratio = (term.old - now).exp()
        clipped = torch.where(A > 0, ratio > 1 + spec.clip_high, ratio < 1 - spec.clip_low)
        parts = {"policy": over_groups(weight * A * torch.where(clipped, now, d), groups)}
        metrics = {
            "ratio": ratio.mean(),
            "ratio_deviation": (ratio - 1).abs().max(),
            "clip_fraction": clipped.double().mean(),
            "group_weight": over_groups(weight, groups),
            "matching_loss": now.mean(),
        }
        if term.reference is not None:
            distance = over_groups(error(v, term.reference), groups)
            parts["kl"], metrics["kl"] = spec.kl_beta * distance, distance.detach()
        return Loss(parts, metrics)

    def after_update(self, policy: Policy, update: Update) -> None:
        policy.move("old", self.spec.old.at(update.step))
        if self.needs.rollout == "sampler":
            policy.move("sampler", self.spec.sampler.at(update.step))


def error(v: Tensor, u: Tensor) -> Tensor:
    """The mean squared difference of velocities `(B, …)`, `(B,)`: elements float32, their mean float64."""
    return per_sample_mean(((v.float() - u.float()) ** 2).double())
