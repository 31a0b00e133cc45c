"""DMD2 (Yin et al. 2024, arXiv:2405.14867), carried to flow matching, without data and without its discriminator.

The student's output `x = x_k - sigma_k v(x_k)` at a step of its own trajectory gets noise, `x_s = (1 - s) x + s e`.
With the data that teacher and fake network see there, `X_T = x_s - s v_T` and `X_F = x_s - s v_F`:

    w = 1 / (mean |x - X_T| + 1e-6)              for each sample, without gradient
    L = mean (x - stop(x - w (X_F - X_T)))² / 2  of the student: dL/dx = w (X_F - X_T) by the number of elements
    L = mean (X_F - x)² = s² mean (v_F - (e - x))²           of the fake network, which learns what the student makes

Differences are taken of velocities, whose digits survive where the student is near its teacher. The authors' student of
several steps starts from noised data; the one here from states it has made itself, as it does when it samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from flowfactory import Batch, Draws, Loss, Policy, Trainer, like_latents, noise_levels, noised, per_sample_mean
from torch import Tensor

from flowfactory_plugin_dmd import FAKE, DMDSpec
from flowfactory_plugin_dmd.student import Start, judged, pulled


@attrs.frozen(eq=False)
class Term:
    """Noise `(B, …)` and a level `(B,)` to compare at; where the student starts.

    made: what it has made there `(B, …)`, for the fake network.
    """

    noise: Tensor
    level: Tensor
    start: Start
    made: Tensor | None


class DMD(Trainer[DMDSpec]):
    """Distribution matching at a noise level of each sample's own."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        start = Start.drawn(batch, draws)
        (level,) = noise_levels(self.spec.times, batch.rollout.sigmas, draws)
        noise = draws.normal(*start.x.shape[1:]).to(start.x.device)
        made = start.made(policy, batch)[0] if batch.role == FAKE else None
        return [Term(noise, level.to(start.x.device), start, made)]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        if term.made is not None:
            return self._fitted(policy, batch, term, term.made)
        x, _ = term.start.made(policy, batch)
        clean, s = x.detach(), like_latents(term.level, x)
        teacher, fake = judged(policy, batch, noised(clean, term.noise, term.level), term.level, self.spec.guidance)
        gap, distance = s * (teacher - fake), per_sample_mean((s * (teacher - (term.noise - clean))).abs())
        gradient = gap * like_latents(1 / (distance + 1e-6), x)
        loss = pulled(x, gradient / gradient.numel(), gradient.square().mean() / 2)
        return Loss({"student": loss}, {"gap": gap.abs().mean(), "teacher_distance": distance.mean()})

    def _fitted(self, policy: Policy, batch: Batch, term: Term, x: Tensor) -> Loss:
        """The fake network's error on what the student has made."""
        v = policy.velocity(noised(x, term.noise, term.level), term.level, batch.conditions).float()
        error = per_sample_mean((v - (term.noise - x)) ** 2)
        return Loss({FAKE: (error * term.level**2 if self.spec.fake_loss == "data" else error).mean()})
