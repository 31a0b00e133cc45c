"""Euler steps of the probability-flow ODE `dx = v dsigma`."""

from __future__ import annotations

from torch import Tensor

from flowfactory.builtin import ODESpec
from flowfactory.contracts.scheduler import Scheduler, State, euler


class ODE(Scheduler[ODESpec]):
    """`x' = x + (sigma' - sigma) v`: deterministic, so it has no log-probability."""

    def advance(self, state: State, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, State]:
        return euler(v, x, sigma, sigma_next), state
