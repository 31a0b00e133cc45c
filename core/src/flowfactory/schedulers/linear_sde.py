"""Linear-SDE: the stochastic sampler of Flow-GRPO (Liu et al. 2025, arXiv:2505.05470) for Wan, and of Flash-GRPO
(arXiv:2605.15980).

    dx = (v + g² / (2 sigma) X1) dsigma + g dw,   g = eta sigma_1 sigma,   X1 = x + (1 - sigma) v

the reverse SDE of `flow_sde` with a diffusion coefficient that falls with the noise level; `sigma_1` is the schedule's
second level. Below 1 everywhere, where Flow-SDE's grows without bound towards pure noise.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from flowfactory.builtin import LinearSDESpec
from flowfactory.contracts.scheduler import Moments, StochasticScheduler
from flowfactory.schedulers.flow_sde import reverse_sde


class LinearSDE(StochasticScheduler[LinearSDESpec]):
    """`x' ~ N(x - D v - g² D / (2 sigma) X1, g² D)` with `D = sigma - sigma'` and `g = eta sigma_1 sigma`."""

    keeps_marginals: ClassVar[bool] = True

    def moments(self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float) -> Moments:
        return reverse_sde(v, x, sigma, sigma_next, self.spec.eta * ceiling * sigma)
