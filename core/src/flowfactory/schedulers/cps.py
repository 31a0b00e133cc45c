"""CPS, coefficients-preserving sampling: the stochastic sampler of FlowCPS (Wang and Yu 2025, arXiv:2509.05952).

    x' = (1 - sigma') X0 + sigma' (cos(eta pi / 2) X1 + sin(eta pi / 2) z)
    X0 = x - sigma v,   X1 = x + (1 - sigma) v

so data and noise keep the coefficients `1 - sigma'` and `sigma'` they have at that level, and no noise is left over.
"""

from __future__ import annotations

import math

from torch import Tensor

from flowfactory.builtin import CPSSpec
from flowfactory.contracts.scheduler import Moments, StochasticScheduler, per_sample_mean


class CPS(StochasticScheduler[CPSSpec]):
    """Scores a step by its negative squared error, as the authors do: the Gaussian's without `1 / (2 std²)`."""

    def moments(self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float) -> Moments:
        angle = self.spec.eta * math.pi / 2
        data, noise = x - sigma * v, x + (1 - sigma) * v
        mean = (1 - sigma_next) * data + sigma_next * math.cos(angle) * noise
        return Moments(mean, sigma_next * math.sin(angle))

    def logprob(
        self, v: Tensor, x: Tensor, x_next: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float
    ) -> Tensor:
        """`-(x' - mean)²` averaged over elements: no density, but its ratios rank steps as one would."""
        mean = self.moments_of(v, x, sigma, sigma_next, ceiling).mean
        return -per_sample_mean((x_next.detach().float() - mean) ** 2)
