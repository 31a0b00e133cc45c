"""Flow-SDE: the stochastic sampler of Flow-GRPO (Liu et al. 2025, arXiv:2505.05470).

    dx = (v + g² / (2 sigma) X1) dsigma + g dw,   g = eta sqrt(sigma / (1 - sigma)),   X1 = x + (1 - sigma) v

has the marginals of the probability-flow ODE. Where `1 - sigma` is smaller than at the schedule's second level, that
level stands in for it; so the first step adds noise of standard deviation `eta` exactly.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from flowfactory.builtin import FlowSDESpec
from flowfactory.contracts.scheduler import Moments, StochasticScheduler


class FlowSDE(StochasticScheduler[FlowSDESpec]):
    """`x' ~ N(x - D v - g² D / (2 sigma) X1, g² D)` with `D = sigma - sigma'`."""

    keeps_marginals: ClassVar[bool] = True

    def moments(self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float) -> Moments:
        g = self.spec.eta * torch.sqrt(sigma / (1 - sigma.clamp(max=ceiling)))
        return reverse_sde(v, x, sigma, sigma_next, g)


def reverse_sde(v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, g: Tensor) -> Moments:
    """One Euler-Maruyama step of the reverse SDE with diffusion coefficient `g` `(B, 1, …)` per root of sigma."""
    D = sigma - sigma_next
    noise_estimate = x + (1 - sigma) * v
    return Moments(x - D * v - g**2 * D / (2 * sigma) * noise_estimate, g * torch.sqrt(D))
