"""A small exact problem: data that are one Gaussian, whose velocity field is known, and a policy that is its mean.

For data `x0 ~ N(m, s²)` and `x = (1 - sigma) x0 + sigma e`, with `V = (1 - sigma)² s² + sigma²`:

    v(x) = E[e - x0 | x] = (sigma - (1 - sigma) s²) / V (x - (1 - sigma) m) - m
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from flowfactory.builtin import FlowSDESpec, ODESpec
from flowfactory.contracts.scheduler import Scheduler, StochasticScheduler, like_latents, per_sample_mean
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Needs
from flowfactory.contracts.trainer import Trainer
from flowfactory.contracts.types import Batch, Conditions, Loss, Rollout, Row, Update
from flowfactory.policy.loras import Given
from flowfactory.policy.weights import Weights
from flowfactory.rewards.advantages import Scores
from flowfactory.sampling.rollout import draw_noise, rollout
from flowfactory.sampling.times import noised
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.schedulers.ode import ODE
from flowfactory.spec.tables import Full

SHAPE = (4,)
SPREAD = 0.5
"""Standard deviation of the data."""
STEPS = 6
TARGET = 1.0
"""Where samples are rewarded for lying, in every direction; they begin around 0. The data lie there, as far as they are
to be learned; the samples that pairs reject lie around 0."""
SAMPLES = range(8)
"""The samples that trainers are tried on, by their numbers."""
MIXED = (0.5, -0.5, 0.3, -0.3, 0.4, -0.4, 0.2, -0.2)
"""Advantages of eight samples: of both signs, and of mean 0."""
SLOTS = (0, 0, 0, 1, 1, 2, 2, 2)
"""The groups of eight samples: not all of one size, as in a run whose rewards fail."""


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


@attrs.frozen(eq=False)
class Made:
    """Trajectories of `B` samples, what they were conditioned on, and their groups `(B,)`."""

    rollout: Rollout
    conditions: Conditions
    groups: Tensor


class Problem:
    """The problem as a trainer sees it; samples are named by whole numbers, and each is its own whatever its batch."""

    def __init__(self, trainer: Trainer[Any]) -> None:
        self.trainer = trainer
        self.needs = trainer.needs
        self.policy = MeanPolicy(self.needs)
        stochastic = self.needs.trajectory == "steps" or self.needs.density != "none"
        self.scheduler: Scheduler[Any] = FlowSDE(FlowSDESpec()) if stochastic else ODE(ODESpec())
        self.steps = tuple(range(STEPS - 1)) if stochastic else ()

    @property
    def on_policy(self) -> bool:
        """Whether samples come from the current weights."""
        return self.needs.rollout == "current"

    def groups(self, samples: Sequence[int]) -> Tensor:
        """The group of each sample, `(B,)`."""
        pairs = self.needs.source == "pairs"
        return torch.tensor([i // 2 if pairs else 3 * (i // 8) + SLOTS[i % 8] for i in samples])

    def judged(self, samples: Sequence[int]) -> Tensor:
        """Advantages `(B,)` that differ within groups, as core would give them."""
        if self.needs.source == "pairs":
            return torch.tensor([1.0 - 2 * (i % 2) for i in samples], dtype=torch.float64)
        if not self.needs.scores:
            return torch.zeros(len(samples), dtype=torch.float64)
        return torch.tensor([MIXED[i % 8] for i in samples], dtype=torch.float64)

    def sample(self, samples: Sequence[int], epoch: int = 0, groups: Tensor | None = None) -> Made:
        """What the trainer learns from: trajectories, rolled out with the weights it wants, or stored latents."""
        slots = self.groups(samples) if groups is None else groups
        shift = 0.1 * (slots % 3 - 1).float()[:, None].expand(-1, *SHAPE)
        conditions = {"shift": shift.contiguous()}
        made = self.roll(samples, epoch, conditions) if self.needs.source == "rollouts" else self.store(samples, epoch)
        return Made(made, conditions, slots)

    def roll(self, samples: Sequence[int], epoch: int, conditions: Conditions) -> Rollout:
        """Trajectories."""
        keys = [(0, "conformance", epoch, i) for i in samples]
        noise = draw_noise([(*k, "start") for k in keys], [(*k, "steps") for k in keys], SHAPE, len(self.steps))
        with self.policy.using(self.needs.rollout):
            return rollout(
                self.policy, self.scheduler, schedule(STEPS), self.steps, noise, conditions, torch.float32,
                self.needs.trajectory,
            )  # fmt: skip

    def store(self, samples: Sequence[int], epoch: int) -> Rollout:
        """Latents of the data."""
        rejected = [self.needs.source == "pairs" and i % 2 == 1 for i in samples]
        centres = TARGET * (~torch.tensor(rejected)).float()[:, None]
        spread = SPREAD * Draws([(0, "conformance-data", epoch, i) for i in samples]).normal(*SHAPE)
        return Rollout(schedule(STEPS), (), {STEPS: centres + spread}, {})

    def batch(
        self, made: Made, advantages: Tensor, chosen: slice | Tensor = slice(None), on_policy: bool | None = None
    ) -> Batch:
        """Some of the samples as a micro-batch."""
        conditions = {name: tensor[chosen] for name, tensor in made.conditions.items()}
        fresh = self.on_policy if on_policy is None else on_policy
        own = advantages[chosen].double()
        return Batch(made.rollout[chosen], conditions, own, fresh, self.scheduler, made.groups[chosen])

    def units(self, batch: Batch) -> int:
        """How many of what the loss is a mean of a batch has: samples, or groups."""
        return len(batch.groups) if self.needs.batch == "samples" else len(set(batch.groups.tolist()))

    @torch.no_grad()
    def terms(self, batch: Batch, samples: Sequence[int], epoch: int = 0) -> Sequence[Any]:
        """What the trainer wants to train on."""
        owners = batch.groups.tolist() if self.needs.draws == "group" else samples
        return self.trainer.terms(self.policy, batch, Draws([(0, "conformance-terms", epoch, i) for i in owners]))

    def losses(self, batch: Batch, terms: Sequence[Any]) -> list[Loss]:
        """The loss of each term."""
        return [self.trainer.loss(self.policy, batch, term) for term in terms]

    def gradient(self, value: Tensor) -> Tensor:
        """The gradient `(P,)` float64 of a scalar, zero where it has none."""
        if not value.requires_grad:
            return torch.zeros(sum(p.numel() for p in self.policy.parameters), dtype=torch.float64)
        found = torch.autograd.grad(value, self.policy.parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.policy.parameters, strict=True)]
        return torch.cat([part.flatten() for part in parts]).double()

    def total(self, losses: Sequence[Loss]) -> Tensor:
        """What core differentiates: all parts, averaged over the terms."""
        return torch.stack([torch.stack(list(loss.parts.values())).sum() for loss in losses]).mean()

    @torch.no_grad()
    def probed(self, weights: str) -> Tensor:
        """What some weights say at a few fixed points, `(8, 4)`."""
        x = torch.linspace(-2, 2, 8)[:, None].expand(8, *SHAPE)
        with self.policy.using(weights):
            return self.policy.velocity(x, torch.linspace(0.9, 0.1, 8), {"shift": torch.zeros(8, *SHAPE)}).clone()

    def nudge(self, size: float) -> None:
        """Move the current weights a little, as an update would."""
        with torch.no_grad():
            for parameter in self.policy.parameters:
                parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def likelihood(self, made: Made, sample: int) -> Tensor:
        """How likely the current weights are to make a sample, up to a constant and a positive factor.

        Of a stored trajectory its log-probability; of final latents `-E|v - (e - x0)|²`, which bounds it from below.
        """
        one = slice(sample, sample + 1)
        conditions = {name: tensor[one] for name, tensor in made.conditions.items()}
        stored = made.rollout[one]
        if stored.steps:
            return torch.stack([self._logprob(stored, step, conditions) for step in stored.steps]).sum()
        noise = torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(2))
        sigma = (torch.arange(256) + 0.5) / 256
        x0 = stored.final.float().expand(256, *SHAPE)
        many = {name: tensor.expand(256, *tensor.shape[1:]) for name, tensor in conditions.items()}
        v = self.policy.velocity(noised(x0, noise, sigma), sigma, many)
        return -per_sample_mean((v - (noise - x0)) ** 2).mean()

    def _logprob(self, stored: Rollout, step: int, conditions: Conditions) -> Tensor:
        assert isinstance(self.scheduler, StochasticScheduler)
        x, x_next = stored.latents[step], stored.latents[step + 1]
        sigma, sigma_next = (stored.sigmas[i : i + 1] for i in (step, step + 1))
        v = self.policy.velocity(x, sigma, conditions)
        return self.scheduler.logprob(v, x, x_next, sigma, sigma_next, stored.ceiling).sum()

    def learn(self, epochs: int, groups: int, group: int, lr: float) -> tuple[float, float]:
        """Train, and return how far samples lie from the target, squared, before and after."""
        optimizer = torch.optim.Adam(self.policy.parameters, lr=lr)
        samples = range(groups * group)
        slots = torch.arange(len(samples)) // (2 if self.needs.source == "pairs" else group)
        distances = []
        for epoch in range(epochs):
            made = self.sample(samples, epoch, slots)
            reward = -((made.rollout.final.double() - TARGET) ** 2).mean(1)
            distances.append(self.distance(made, samples, epoch))
            advantages = self.judged(samples)
            if self.needs.scores:
                advantages = self.trainer.advantages(Scores({"near": reward}, {"near": 1.0}), slots)
            chosen = (~advantages.isnan()).nonzero().flatten()
            if not len(chosen):
                continue  # as in a run: NaN takes no part
            batch = self.batch(made, advantages, chosen)
            loss = self.total(self.losses(batch, self.terms(batch, chosen.tolist(), epoch)))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            self.trainer.after_update(self.policy, Update(epoch, 0, epoch + 1, last=True))
        return distances[0], distances[-1]

    @torch.no_grad()
    def distance(self, made: Made, samples: Sequence[int], epoch: int) -> float:
        """How far from the target, squared, the weights that sample make samples now."""
        stored = self.needs.source != "rollouts"
        final = self.roll(samples, epoch, made.conditions).final if stored else made.rollout.final
        return float(((final.double() - TARGET) ** 2).mean())


def parts_of(losses: Sequence[Loss]) -> Mapping[str, Tensor]:
    """Each part `()`, averaged over the terms that have it."""
    names = dict.fromkeys(name for loss in losses for name in loss.parts)
    return {name: torch.stack([loss.parts[name] for loss in losses if name in loss.parts]).mean() for name in names}
