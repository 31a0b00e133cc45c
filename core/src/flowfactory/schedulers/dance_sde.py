"""Dance-SDE: the stochastic sampler of DanceGRPO (Xue et al. 2025, arXiv:2505.07818).

    dx = (v + g² / (2 sigma) X1) dsigma + g dw,   g = eta,   X1 = x + (1 - sigma) v

the reverse SDE of `flow_sde` with a constant diffusion coefficient.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from flowfactory.builtin import DanceSDESpec
from flowfactory.contracts.scheduler import Moments, StochasticScheduler
from flowfactory.schedulers.flow_sde import reverse_sde


class DanceSDE(StochasticScheduler[DanceSDESpec]):
    """`x' ~ N(x - D v - eta² D / (2 sigma) X1, eta² D)` with `D = sigma - sigma'`."""

    keeps_marginals: ClassVar[bool] = True

    def moments(self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float) -> Moments:
        return reverse_sde(v, x, sigma, sigma_next, torch.full_like(sigma, self.spec.eta))
