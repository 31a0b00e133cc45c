"""The reverse SDE of flow matching, with a diffusion coefficient that falls with the noise level:

    dx = (v + g² / (2 sigma) X1) dsigma + g dw,   g = eta sigma,   X1 = x + (1 - sigma) v

Any `g` keeps the marginals of the probability-flow ODE.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from flowfactory import Moments, StochasticScheduler
from torch import Tensor

from {{ cookiecutter.__module }} import {{ cookiecutter.__class }}Spec


class {{ cookiecutter.__class }}(StochasticScheduler[{{ cookiecutter.__class }}Spec]):
    """`x' ~ N(x - D v - g² D / (2 sigma) X1, g² D)` with `D = sigma - sigma'`."""

    keeps_marginals: ClassVar[bool] = True

    def moments(self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float) -> Moments:
        D, g = sigma - sigma_next, self.spec.eta * sigma
        noise = x + (1 - sigma) * v
        return Moments(x - D * v - g**2 * D / (2 * sigma) * noise, g * torch.sqrt(D))
