"""A network that is the exact velocity field of a Gaussian, and the policy over it: the mean is what is trained.

For data `x0 ~ N(m, s²)` and `x = (1 - sigma) x0 + sigma e`, with `V = (1 - sigma)² s² + sigma²`:

    v(x) = E[e - x0 | x] = (sigma - (1 - sigma) s²) / V (x - (1 - sigma) m) - m
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flowfactory.contracts.scheduler import like_latents, per_sample_mean
from flowfactory.contracts.specs import Needs
from flowfactory.contracts.types import Conditions, Row
from flowfactory.policy.loras import Given
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Full

SHAPE = (4,)
SPREAD = 0.5
"""Standard deviation of the data."""
TARGET = 1.0
"""Where samples are rewarded for lying, in every direction; they begin around 0. The data lie there, as far as they are
to be learned; the samples that pairs reject lie around 0."""


def schedule(steps: int, shift: float = 3.0) -> Tensor:
    """Noise levels `(steps+1,)` from 1 to 0, moved towards noise as image models do."""
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * even / (1 + (shift - 1) * even)).float()


def gaussian_velocity(x: Tensor, sigma: Tensor, mean: Tensor | float, spread: float) -> Tensor:
    """The exact velocity `(B, …)` for data `N(mean, spread²)` at noise levels `(B,)`."""
    level = like_latents(sigma, x).to(x.dtype)
    variance = ((1 - level) * spread) ** 2 + level**2
    return (level - (1 - level) * spread**2) / variance * (x - (1 - level) * mean) - mean


class Mean(nn.Module):
    """The velocity field of `N(mean + condition, SPREAD²)`; the mean `(4,)` is what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(SHAPE))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """The velocity `(B, 4)`."""
        return gaussian_velocity(x.float(), sigma, self.mean + condition, SPREAD)


class MeanPolicy:
    """`flowfactory.contracts.trainer.Policy` over `Mean`, with core's own weight sets.

    trained: how many samples' velocities were asked for with a gradient.
    """

    def __init__(self, needs: Needs) -> None:
        self.network = Mean()
        sets = {*needs.sets, *({"reference"} if needs.reference else ())}
        others = {
            name: Given(name, whole={"mean.mean": torch.full(SHAPE, number / 2)})
            for number, name in enumerate(sorted(needs.loaded), 1)
        }
        self.weights = Weights({"mean": self.network}, Full(), [], sorted(sets), seed=0, others=others)
        self.active = "current"
        self.trained = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return list(self.weights.parameters.values())

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float | None = None) -> Tensor:
        """The velocity `(B, 4)`; guidance means nothing to it."""
        self.trained += len(x) if torch.is_grad_enabled() else 0
        made: Tensor = self.network(x, sigma, conditions["shift"])
        return made

    def decode(self, x: Tensor) -> Tensor:
        """Images `(B, 3, 2, 2)` that are grey and show the latents `(B, 4)`."""
        return x.float().reshape(-1, 1, 2, 2).expand(-1, 3, -1, -1)

    def reward(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        """The less far from the target, squared, the higher `(B,)`; at most 0."""
        return -per_sample_mean((media - TARGET) ** 2)

    @contextmanager
    def using(self, weights: str) -> Iterator[None]:
        """Compute with another set of weights; see `Weights.using`."""
        before, self.active = self.active, weights
        try:
            with self.weights.using(weights):
                yield
        finally:
            self.active = before

    def move(self, weights: str, decay: float) -> None:
        """Move a set towards the current weights; see `Weights.move`."""
        self.weights.move(weights, decay)
