"""The exact velocity field of a Gaussian: as a network whose mean is trained, and with steps of schedulers through it.

For data `x0 ~ N(m, s²)` and `x = (1 - sigma) x0 + sigma e`, with `V = (1 - sigma)² s² + sigma²`:

    v(x) = E[e - x0 | x] = (sigma - (1 - sigma) s²) / V (x - (1 - sigma) m) - m
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.contracts.scheduler import Field, Scheduler, like_latents, per_sample_mean
from flowfactory.contracts.specs import Needs
from flowfactory.contracts.types import Conditions, Row
from flowfactory.policy.loras import Given
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Full
from flowfactory.testing.subject import Subject, expect

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

    forward, trained: how many samples' velocities were asked for without a gradient, and with one.
    """

    def __init__(self, needs: Needs) -> None:
        self.network = Mean()
        sets = {*needs.sets, *needs.roles, *({"reference"} if needs.reference else ())}
        others = {
            name: Given(name, whole={"mean.mean": torch.full(SHAPE, number / 2)})
            for number, name in enumerate(sorted(needs.loaded), 1)
        }
        self.weights = Weights({"mean": self.network}, Full(), [], sorted(sets), seed=0, others=others)
        self.active = "current"
        self.forward = self.trained = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return list(self.weights.parameters.values())

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float | None = None) -> Tensor:
        """The velocity `(B, 4)`; guidance means nothing to it."""
        self.trained += len(x) * torch.is_grad_enabled()
        self.forward += len(x) * (not torch.is_grad_enabled())
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


# --- steps of schedulers ------------------------------------------------------------------------------------------

LATENTS = (3, 4, 2)
"""A batch of three latents."""
STEPS = 10
MIDDLE, WIDTH = 0.5, 0.4
"""Of the data whose exact velocity schedulers are tried on."""


def calls_are_as_said(subject: Subject) -> None:
    """A trajectory asks for as many velocities as its spec says, and so do its last steps."""
    for steps in (STEPS, 3, 1):
        asked: list[float] = []

        def field(x: Tensor, sigma: Tensor, asked: list[float] = asked) -> Tensor:
            asked.append(float(sigma[0]))
            return gaussian_velocity(x, sigma, MIDDLE, WIDTH)

        scheduler, sigmas = subject.make(), schedule(STEPS)[-steps - 1 :]
        x, state = noise(0, *LATENTS), scheduler.start()
        for i in range(steps):
            x, state = _taken(scheduler, field, state, x, sigmas[i], sigmas[i + 1])
        said = subject.spec.calls(steps)
        expect(len(asked) == said, f"its spec says {said} calls of the last {steps} steps, and it makes {len(asked)}")


def trajectories_are_sound(subject: Subject) -> None:
    """Every step, from noise to data, gives finite float32 latents of the same shape and changes none it is given."""
    scheduler, sigmas = subject.make(), schedule(STEPS)
    x, state = noise(0, *LATENTS), scheduler.start()
    for i in range(STEPS):
        v, kept = noise(i + 1, *LATENTS), x.clone()
        moved, state = scheduler.advance(state, v, x, sigmas[i].expand(3), sigmas[i + 1].expand(3))
        expect(moved.dtype == torch.float32, f"`advance` returns {moved.dtype}, not float32")
        expect(moved.shape == x.shape, f"`advance` returns {tuple(moved.shape)} for {tuple(x.shape)}")
        expect(moved.isfinite().all(), f"`advance` returns infinities at step {i}, from {sigmas[i]} to {sigmas[i + 1]}")
        expect(torch.equal(x, kept), "`advance` changes the latents it is given")
        x = moved


def batch_independence(subject: Subject) -> None:
    """A trajectory does not depend on what else is in the batch."""
    scheduler, start = subject.make(), noise(0, *LATENTS)
    together = travel(scheduler, start, schedule(STEPS))
    alone = torch.cat([travel(scheduler, start[i : i + 1], schedule(STEPS)) for i in range(3)])
    near(together, alone, 1e-5, "a trajectory alone differs from the same one in a batch")


def no_hidden_state(subject: Subject) -> None:
    """State is passed along, never kept: two trajectories step by step in turn are what they are one by one."""
    scheduler, sigmas = subject.make(), schedule(STEPS)
    starts = [noise(seed, *LATENTS) for seed in (0, 1)]
    expected = [travel(subject.make(), start, sigmas) for start in starts]
    states, xs = [scheduler.start(), scheduler.start()], list(starts)
    for i in range(STEPS):
        for k in (0, 1):
            xs[k], states[k] = step_of(scheduler, states[k], xs[k], sigmas[i], sigmas[i + 1])
    for k in (0, 1):
        expect(torch.equal(xs[k], expected[k]), "a trajectory changes when another is sampled meanwhile")


def solves_the_ode(subject: Subject) -> None:
    """Its deterministic steps converge to the probability-flow ODE, as their number grows."""
    start = noise(0, 4, 16)
    exact = MIDDLE + WIDTH * start
    few, many = (float((travel(subject.make(), start, schedule(n)) - exact).abs().max()) for n in (20, 160))
    sound = many < max(0.3 * few, 1e-4) and many < 0.05
    expect(sound, f"it misses the exact solution by {few:.1e} with 20 steps and by {many:.1e} with 160")


def straight_lines_are_exact(subject: Subject) -> None:
    """Where all data are one point, its deterministic steps go there."""
    end = travel(subject.make(), noise(0, *LATENTS), schedule(STEPS), spread=0.0)
    gap = float((end - MIDDLE).abs().max())
    expect(gap < 1e-4, f"trajectories end {gap:.1e} beside the one point there is")


def noise(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def travel(scheduler: Scheduler[Any], x: Tensor, sigmas: Tensor, spread: float = WIDTH) -> Tensor:
    """Deterministic steps through the exact velocity field, from noise to data."""
    state = scheduler.start()
    for i in range(len(sigmas) - 1):
        x, state = step_of(scheduler, state, x, sigmas[i], sigmas[i + 1], spread)
    return x


def step_of(
    scheduler: Scheduler[Any], state: Any, x: Tensor, sigma: Tensor, sigma_next: Tensor, spread: float = WIDTH
) -> tuple[Tensor, Any]:
    """One deterministic step in the field of a Gaussian: the next latents, and the next state."""
    return _taken(scheduler, lambda x, s: gaussian_velocity(x, s, MIDDLE, spread), state, x, sigma, sigma_next)


def _taken(
    scheduler: Scheduler[Any], field: Field, state: Any, x: Tensor, sigma: Tensor, sigma_next: Tensor
) -> tuple[Tensor, Any]:
    here, there = sigma.expand(len(x)), sigma_next.expand(len(x))
    return scheduler.advance(state, scheduler.look(field, x, here, there), x, here, there)


def near(expected: Tensor, found: Tensor, tolerance: float, what: str) -> None:
    """Expect values to be near others, relative to the largest or to 1; `what` is said otherwise."""
    gap = float((expected - found).abs().max())
    expect(gap <= tolerance * max(1.0, float(expected.abs().max())), f"{what}, by {gap:.1e}")
