"""UniPC-2 (bh2, data prediction): a predictor-corrector solver of the ODE (Zhao et al. 2023, arXiv:2302.04867).

With `m = x - sigma v`, `a = 1 - sigma`, `lam = ln(a / sigma)`, `h = lam' - lam`, `q = exp(-h) - 1`, the predictor is

    x' = (sigma' / sigma) x - a' q (m + (m_prev - m) / (2 r)),   r = (lam_prev - lam) / h

and the network's answer at `x'` corrects the step that led there, without a second call (`_correction`). The first and
the last step are of first order. diffusers keeps the history inside its scheduler; here it is passed along.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from flowfactory.builtin import UniPCSpec
from flowfactory.contracts.scheduler import Scheduler, like_latents
from flowfactory.schedulers.dpm_solver import log_snr, toward


@attrs.frozen(eq=False)
class Point:
    """A corrected step: where it started, `x` `(B, …)` at `sigma` `(B,)` float64, with data estimate `data`."""

    x: Tensor
    data: Tensor
    sigma: Tensor
    before: Point | None
    """The step before, with its own `before` cut off; `None` for the first step."""


class UniPC(Scheduler[UniPCSpec]):
    """Second order, one network call per step; coefficients in float64, latents in float32."""

    def advance(
        self, state: Point | None, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor
    ) -> tuple[Tensor, Point]:
        s, s_next = sigma.double(), sigma_next.double()
        data = x.float() - like_latents(sigma, x) * v.float()
        if state is None:
            return toward(data, x, s, s_next), Point(x.float(), data, s, None)
        x = toward(state.data + _correction(state, data, s), state.x, state.sigma, s)
        h, h_prev = log_snr(s_next) - log_snr(s), log_snr(s) - log_snr(state.sigma)
        slope = torch.where(s_next > 0, h / (2 * h_prev), 0)
        target = data + like_latents(slope, x) * (data - state.data)
        return toward(target, x, s, s_next), Point(x, data, s, attrs.evolve(state, before=None))


def _correction(last: Point, data: Tensor, sigma: Tensor) -> Tensor:
    """What the data estimate of the step from `last` to `sigma` should have been, minus what it was.

    First order: `(m - m_prev) / 2`. Second: `r1 (m_prev2 - m_prev) / r + r2 (m - m_prev)` where
    `r1 + r2 = b1`, `r r1 + r2 = b2`, `b1 = (q / -h - 1) / q`, `b2 = 2 ((q / -h - 1) / -h - 1/2) / q`.
    """
    change = data - last.data
    if last.before is None:
        return change / 2
    lam_last = log_snr(last.sigma)
    h = log_snr(sigma) - lam_last
    r = (log_snr(last.before.sigma) - lam_last) / h
    q = torch.expm1(-h)
    b1 = (q / -h - 1) / q
    b2 = 2 * ((q / -h - 1) / -h - 0.5) / q
    r1 = (b2 - b1) / (r - 1)
    older = last.before.data - last.data
    return like_latents(r1 / r, data) * older + like_latents(b1 - r1, data) * change
