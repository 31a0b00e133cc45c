"""SA-Solver: a stochastic predictor and corrector in several steps (Xue et al. 2023, arXiv:2309.05019), AWM's sampler.

With `m = x - sigma v`, `a = 1 - sigma`, `lam = ln(a / sigma)`, `h = lam' - lam`, `r = exp(-h)` and `k = 1 + tau²`:

    x' = r^(tau²) (sigma' / sigma) x + a' (1 - r^k) m + a' k h G + sigma' sqrt(1 - r^(2 tau²)) z

predicts by `G = (m - m_prev) h / (2 h_prev)`; the network's answer `m'` at `x'` corrects that step, with the same noise
`z`, by `G = (m' - m) / 2`, without a second call. Both are of order 2 and rescaled, as in the paper's appendix D and in
AWM's code: the integral that weighs `G` is that of its leading order. As there, the first step is of first order and
not corrected, and the last one lands on `m`. Without noise (`tau` 0) it solves the probability-flow ODE.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from flowfactory.builtin import SASolverSpec
from flowfactory.contracts.scheduler import NoisyScheduler, like_latents
from flowfactory.schedulers.dpm_solver import log_snr


@attrs.frozen(eq=False)
class Taken:
    """A step that was taken from `sigma` `(B,)` float64, where the data estimate was `data` `(B, …)`.

    plain: where it leads without its `G`, noise included `(B, …)`. weight: `a' k h` `(B,)`. first: it was the first.
    """

    sigma: Tensor
    data: Tensor
    plain: Tensor
    weight: Tensor
    first: bool


class SASolver(NoisyScheduler[SASolverSpec]):
    """Order 2 without noise, one network call per step; coefficients in float64, latents in float32."""

    keeps_marginals: ClassVar[bool] = True

    def advance(
        self, state: Taken | None, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor
    ) -> tuple[Tensor, Taken]:
        return _step(0.0, state, v, x, sigma, sigma_next, torch.zeros_like(x, dtype=torch.float32))

    def diffuse(
        self, state: Taken | None, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor
    ) -> tuple[Tensor, Taken]:
        return _step(self.spec.tau, state, v, x, sigma, sigma_next, noise)


def _step(
    tau: float, last: Taken | None, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor
) -> tuple[Tensor, Taken]:
    s, s_next, k = sigma.double(), sigma_next.double(), 1 + tau**2
    data = x.float() - like_latents(sigma, x) * v.float()
    x = x.float() if last is None or last.first else last.plain + like_latents(last.weight, x) * (data - last.data) / 2
    r = (1 - s) * s_next / (s * (1 - s_next))  # 0 at either end
    keep, fresh = r ** (tau**2) * s_next / s, s_next * torch.sqrt(1 - r ** (2 * tau**2))
    plain = like_latents(keep, x) * x + like_latents((1 - s_next) * (1 - r**k), x) * data
    plain = plain + like_latents(fresh, x) * noise
    h = log_snr(s_next) - log_snr(s)
    weight = torch.where(r > 0, (1 - s_next) * k * h, 0)
    taken = Taken(s, data, plain, weight, last is None)
    if last is None:
        return plain, taken
    slope = torch.where(r > 0, weight * h / (2 * (log_snr(s) - log_snr(last.sigma))), 0)
    return plain + like_latents(slope, x) * (data - last.data), taken
