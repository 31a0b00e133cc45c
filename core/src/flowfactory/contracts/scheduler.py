"""The contract of a sampling dynamics: how latents move from one noise level to the next."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar, final

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.specs import SchedulerSpec, StochasticSpec

SpecT = TypeVar("SpecT", bound=SchedulerSpec)
StochasticSpecT = TypeVar("StochasticSpecT", bound=StochasticSpec)

Field = Callable[[Tensor, Tensor], Tensor]
"""The velocity `(B, …)` at latents `(B, …)` and noise levels `(B,)`; each call of it is a call of the network."""

State = Any
"""What a multistep solver carries from step to step; `None` for one-step dynamics. Passed in and out, never kept."""


@attrs.frozen(eq=False)
class Moments:
    """The Gaussian of one stochastic step: `x' = mean + std * noise`.

    mean: `(B, …)` float32. std: `(B, 1, …)` float32, the *total* standard deviation of the step
    (often `S`; the coefficient per root time, `g`, is `std / sqrt(sigma - sigma_next)`).
    """

    mean: Tensor
    std: Tensor


@attrs.frozen(eq=False)
class Step:
    """A step taken: new latents `(B, …)` in the storage dtype, their log-probability `(B,)`, and the mean `(B, …)`."""

    x: Tensor
    logprob: Tensor
    mean: Tensor


class Scheduler(ABC, Generic[SpecT]):
    """A deterministic dynamics. `sigma` and `sigma_next` are `(B,)`, float32; arithmetic is float32.

    keeps_marginals: of a stochastic one, whether samples at every noise level have the distribution that the ODE gives
        them, in the limit of small steps. The conformance kit checks those that claim it.
    """

    keeps_marginals: ClassVar[bool] = False

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec

    def start(self) -> State:
        """The state before the first step of a trajectory."""
        return None

    def look(self, field: Field, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The velocity `(B, …)` of the step; here that at the start of the step.

        A dynamics that needs the field at further points combines them here; `calls` of its spec counts them.
        """
        return field(x, sigma)

    @abstractmethod
    def advance(self, state: State, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, State]:
        """One deterministic step: the next latents `(B, …)`, float32, and the next state."""


class StochasticScheduler(Scheduler[StochasticSpecT]):
    """A stochastic dynamics: give the `moments` of a step, and sampling and log-probabilities follow.

    Steps outside the window are Euler steps of the probability-flow ODE.
    """

    @final
    def advance(self, state: State, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, State]:
        """The Euler step `x + (sigma_next - sigma) v`."""
        return euler(v, x, sigma, sigma_next), state

    @abstractmethod
    def moments(self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float) -> Moments:
        """Mean and total standard deviation of the step from `sigma` to `sigma_next`.

        All tensors are float32; `sigma` and `sigma_next` have the shape `(B, 1, …)`, latents have `(B, …)`.
        `ceiling` is the schedule's second level: do not divide by `1 - sigma` at a higher level.
        """

    def logprob(
        self, v: Tensor, x: Tensor, x_next: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float
    ) -> Tensor:
        """Log-probability `(B,)` of the step to `x_next`: the Gaussian's, averaged (not summed) over elements.

        Differentiable through `v`; `x_next` is taken as given.
        """
        moments = self.moments_of(v, x, sigma, sigma_next, ceiling)
        z = (x_next.detach().float() - moments.mean) / moments.std
        return per_sample_mean(-0.5 * z**2 - torch.log(moments.std) - 0.5 * math.log(2 * math.pi))

    @final
    def step(
        self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float, noise: Tensor, dtype: torch.dtype
    ) -> Step:
        """Sample one step, with the log-probability of exactly what will be stored.

        The new latents are rounded to `dtype` before it is computed, so that replaying them with unchanged weights
        gives a probability ratio of exactly 1.
        """
        moments = self.moments_of(v, x, sigma, sigma_next, ceiling)
        x_next = to_storage(moments.mean + moments.std * noise.float(), dtype)
        return Step(x_next, self.logprob(v, x, x_next, sigma, sigma_next, ceiling), moments.mean)

    @final
    def moments_of(self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float) -> Moments:
        """`moments` for tensors of any dtype and noise levels `(B,)`."""
        return self.moments(v.float(), x.float(), like_latents(sigma, x), like_latents(sigma_next, x), ceiling)


class NoisyScheduler(Scheduler[StochasticSpecT]):
    """A stochastic dynamics without log-probabilities, which may carry a state; for trainers that need none."""

    @abstractmethod
    def diffuse(
        self, state: State, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor
    ) -> tuple[Tensor, State]:
        """One stochastic step with standard normal `noise` `(B, …)`, float32, and the next state."""


def euler(v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """`x + (sigma_next - sigma) v` in float32."""
    return x.float() + like_latents(sigma_next - sigma, x) * v.float()


def like_latents(per_sample: Tensor, x: Tensor) -> Tensor:
    """`(B,)` reshaped to `(B, 1, …)`, float32, on the device of `x` `(B, …)`."""
    return per_sample.to(x.device, torch.float32).reshape(-1, *(1,) * (x.dim() - 1))


def per_sample_mean(x: Tensor) -> Tensor:
    """The mean `(B,)` over every axis but the first."""
    return x.flatten(1).mean(1)


def to_storage(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to the storage dtype; float16 saturates instead of overflowing."""
    if dtype == torch.float16:
        x = x.clamp(-65504, 65504)
    return x.to(dtype)
