"""Heun's method: second order by a look at where Euler's step would lead (Karras et al. 2022, arXiv:2206.00364).

    x' = x + (sigma' - sigma) (v(x, sigma) + v(x_e, sigma')) / 2,   x_e = x + (sigma' - sigma) v(x, sigma)

The step to sigma' = 0 is Euler's, since networks are not trained there; so `n` steps take `2 n - 1` calls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowfactory.builtin import HeunSpec
from flowfactory.contracts.scheduler import Field, Scheduler, State, euler, like_latents


class Heun(Scheduler[HeunSpec]):
    """Euler's step by the mean of two velocities."""

    def look(self, field: Field, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        v, further = field(x, sigma), sigma_next > 0
        if not bool(further.any()):
            return v
        ahead = field(euler(v, x, sigma, sigma_next), sigma_next)
        return torch.where(like_latents(further, x).bool(), (v.float() + ahead.float()) / 2, v.float())

    def advance(self, state: State, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, State]:
        return euler(v, x, sigma, sigma_next), state
