"""TDM, Trajectory Distribution Matching (Luo et al. 2025, arXiv:2503.06674): the student matched in each of its steps.

A step from `sigma_k` to `m` makes data `x` and noise `n`. At a level `s` above `m`, with fresh noise `e`:

    q = (1 - s) / (1 - m),   noise = (q m n + sqrt(s² - (q m)²) e) / s,   x_s = (1 - s) x + s noise
    L = mean h(x - stop(x + X_T - X_F)) / max(mean |x - X_T|, 1e-6)   of the student, h(d) = sqrt(d² + c²) - c or d² / 2
    L = r min((1 - s)² / s², most) mean (X_F - x)²                    of the fake network

with what teacher and fake network say the data are at `x_s`, and `r = exp clip(mean e² / 2 - mean noise² / 2)`: the
noise that is left of the step is not fresh. Means, not sums, as in Flow-Factory: `r` is a root of the density ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch
from flowfactory import Batch, Draws, Loss, Policy, Trainer, like_latents, noised, per_sample_mean
from torch import Tensor

from flowfactory_plugin_dmd import FAKE, TDMSpec
from flowfactory_plugin_dmd.student import Start, judged, pulled


@attrs.frozen(eq=False)
class Term:
    """Where the student starts, a level `(B,)` above where that leads, and fresh noise `(B, …)`.

    made: the data and noise of the step `(B, …)`, for the fake network.
    """

    start: Start
    level: Tensor
    fresh: Tensor
    made: tuple[Tensor, Tensor] | None


class TDM(Trainer[TDMSpec]):
    """Distribution matching at a level within a step of each sample's own."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        start = Start.drawn(batch, draws)
        fresh = draws.normal(*start.x.shape[1:]).to(start.x.device)
        top = start.sigma if self.spec.interval == "step" else torch.ones_like(start.sigma)
        level = between(start.sigma_next, top, draws.uniform().to(top.device), self.spec.levels == "logit-normal")
        return [Term(start, level, fresh, start.made(policy, batch) if batch.role == FAKE else None)]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        x, n = term.made or term.start.made(policy, batch)
        clean, s = x.detach(), like_latents(term.level, x)
        noise, ratio = mixed(n.detach(), term.fresh, term.level, term.start.sigma_next, self.spec.importance)
        at = noised(clean, noise, term.level)
        if batch.role == FAKE:
            v = policy.velocity(at, term.level, batch.conditions).float()
            error = term.level**2 * per_sample_mean((v - (noise - clean)) ** 2)
            weight = ratio * ((1 - term.level) / term.level).square().clamp(max=self.spec.most)
            return Loss({FAKE: (weight * error).mean()}, {"importance": ratio.mean()})
        teacher, fake = judged(policy, batch, at, term.level, self.spec.guidance)
        gap, distance = s * (teacher - fake), per_sample_mean((s * (teacher - (noise - clean))).abs())
        weight = like_latents(1 / distance.clamp(min=1e-6), x) / x.numel()
        value, slope = distances(gap, self.spec.huber)
        loss = pulled(x, weight * slope, (weight * value).sum())
        return Loss({"student": loss}, {"gap": gap.abs().mean(), "teacher_distance": distance.mean()})


def between(low: Tensor, high: Tensor, u: Tensor, normal: bool) -> Tensor:
    """Quantiles `u` `(B,)` of the uniform distribution between `low` and `high`, or of a logit-normal's part there."""
    u = 0.001 + 0.998 * u  # neither end
    if not normal:
        return low + u * (high - low)
    first, last = (torch.special.ndtr(torch.logit(end.double())) for end in (low, high))
    return torch.special.ndtri(first + u * (last - first)).sigmoid().float()


def mixed(n: Tensor, fresh: Tensor, s: Tensor, m: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """The noise `(B, …)` at levels `s` `(B,)` of a step to levels `m` whose own noise is `n`; and `r` `(B,)`."""
    kept = (1 - s) / (1 - m) * m
    noise = like_latents(kept / s, n) * n + like_latents((s**2 - kept**2).sqrt() / s, n) * fresh
    ratio = (per_sample_mean(fresh**2) - per_sample_mean(noise**2)) / 2
    return noise, ratio.clamp(-math.log(most), math.log(most)).exp()


def distances(d: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """`h(d)` and its slope, element by element."""
    if not width:
        return d**2 / 2, d
    root = (d**2 + width**2).sqrt()
    return root - width, d / root
