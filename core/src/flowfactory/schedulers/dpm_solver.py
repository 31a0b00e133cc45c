"""DPM-Solver++(2M), midpoint: a multistep solver of the probability-flow ODE (Lu et al. 2022, arXiv:2211.01095).

With `m = x - sigma v` the data estimate, `a = 1 - sigma`, `lam = ln(a / sigma)` and `h = lam' - lam`:

    x' = (sigma' / sigma) x + a' (1 - exp(-h)) (m + (m - m_prev) h / (2 h_prev))

The first and the last step are of first order. At sigma = 1, `lam` is minus infinity: the step after it has
`h_prev` infinite and no correction. diffusers keeps the history inside its scheduler; here it is passed along.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from flowfactory.builtin import DPMSolverSpec
from flowfactory.contracts.scheduler import Scheduler, like_latents


@attrs.frozen(eq=False)
class Previous:
    """The data estimate `(B, …)` of the step before, and its noise level `(B,)` float64."""

    data: Tensor
    sigma: Tensor


class DPMSolver(Scheduler[DPMSolverSpec]):
    """Second order, one network call per step; coefficients in float64, latents in float32."""

    def advance(
        self, state: Previous | None, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor
    ) -> tuple[Tensor, Previous]:
        s, s_next = sigma.double(), sigma_next.double()
        data = target = x.float() - like_latents(sigma, x) * v.float()
        if state is not None:
            h, h_prev = log_snr(s_next) - log_snr(s), log_snr(s) - log_snr(state.sigma)
            slope = torch.where(s_next > 0, h / (2 * h_prev), 0)
            target = data + like_latents(slope, x) * (data - state.data)
        return toward(target, x, s, s_next), Previous(data, s)


def log_snr(sigma: Tensor) -> Tensor:
    """`lam = ln((1 - sigma) / sigma)`: minus infinity at 1, infinity at 0."""
    return torch.log1p(-sigma) - sigma.log()


def toward(data: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The exact step if `data` were constant: `(sigma'/sigma) x + a' (1 - exp(-h)) data`, finite at both ends."""
    keep = sigma_next / sigma
    return like_latents(keep, x) * x.float() + like_latents((1 - sigma_next) - (1 - sigma) * keep, x) * data
