"""A small exact problem: samples of the policy of `mean`, rewarded for lying in one place, as a trainer sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from flowfactory.builtin import FlowSDESpec, ODESpec
from flowfactory.contracts.scheduler import Scheduler, StochasticScheduler, per_sample_mean
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.trainer import Policy, Trainer
from flowfactory.contracts.types import Batch, Conditions, Loss, Rollout, Update
from flowfactory.losses.times import noised
from flowfactory.rewards.advantages import Scores
from flowfactory.sampling.branched import branch, of_branches
from flowfactory.sampling.chains import Looks
from flowfactory.sampling.rollout import draw_noise, rollout
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.schedulers.ode import ODE
from flowfactory.spec.window import grown, looked_at
from flowfactory.testing.mean import SHAPE, SPREAD, TARGET, MeanPolicy, schedule

STEPS = 6
SAMPLES = range(8)
"""The samples that trainers are tried on, by their numbers."""
MIXED = (0.5, -0.5, 0.3, -0.3, 0.4, -0.4, 0.2, -0.2)
"""Advantages of eight samples: of both signs, and of mean 0."""
SLOTS = (0, 0, 0, 1, 1, 2, 2, 2)
"""The groups of eight samples: not all of one size, as in a run whose rewards fail."""


@attrs.frozen(eq=False)
class Made:
    """Trajectories of `B` samples, what they were conditioned on, their groups `(B,)`, and what looks see `(B, …)`."""

    rollout: Rollout
    conditions: Conditions
    groups: Tensor
    looks: Sequence[Tensor] = ()


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
    def turns(self) -> tuple[str, ...]:
        """Whose turns an update is, each once: every role's, and then the trained weights'."""
        return (*self.needs.roles, "current")

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
        if self.needs.source != "rollouts":
            return Made(self.store(samples, epoch), conditions, slots)
        made, looks = self.roll(samples, epoch, conditions)
        return Made(made, conditions, slots, looks)

    def roll(self, samples: Sequence[int], epoch: int, conditions: Conditions) -> tuple[Rollout, Sequence[Tensor]]:
        """Trajectories, and what is looked at on their way."""
        keys = [(0, "conformance", epoch, i) for i in samples]
        noise = draw_noise([(*k, "start") for k in keys], [(*k, "steps") for k in keys], SHAPE, len(self.steps))
        kind, sigmas = self.needs.looks, schedule(STEPS)
        looks = Looks(kind, looked_at(kind, self.steps), sigmas, torch.float32)
        with self.policy.using(self.needs.rollout), torch.no_grad():
            made = rollout(
                self.policy, self.scheduler, sigmas, self.steps, noise, conditions, torch.float32,
                self.needs.trajectory, told=looks.told,
            )  # fmt: skip
            ends = [looks.end(step, self.policy, self.scheduler, conditions) for step in looks.found]
        return made, [*ends, *([made.final] if kind == "completed" else [])]

    def scores(self, made: Made) -> Scores:
        """What samples, and what looks see of them, are rewarded with."""
        near, *looks = (-((x.double() - TARGET) ** 2).mean(1) for x in (made.rollout.final, *made.looks))
        return Scores({"near": near}, {"near": 1.0}, {"near": torch.stack(looks, dim=1)} if looks else {})

    def store(self, samples: Sequence[int], epoch: int) -> Rollout:
        """Latents of the data."""
        rejected = [self.needs.source == "pairs" and i % 2 == 1 for i in samples]
        centres = TARGET * (~torch.tensor(rejected)).float()[:, None]
        spread = SPREAD * Draws([(0, "conformance-data", epoch, i) for i in samples]).normal(*SHAPE)
        return Rollout(schedule(STEPS), (), {STEPS: centres + spread}, {})

    def batch(
        self,
        made: Made,
        advantages: Tensor,
        chosen: slice | Tensor = slice(None),
        on_policy: bool | None = None,
        role: str = "current",
    ) -> Batch:
        """Some of the samples as a micro-batch."""
        conditions = {name: tensor[chosen] for name, tensor in made.conditions.items()}
        fresh = self.on_policy if on_policy is None else on_policy
        own = advantages[chosen].double().nan_to_num(0.0)
        return Batch(made.rollout[chosen], conditions, own, fresh, self.scheduler, made.groups[chosen], role=role)

    def units(self, batch: Batch) -> int:
        """How many of what the loss is a mean of a batch has: samples, or groups."""
        return len(batch.groups) if self.needs.batch == "samples" else len(set(batch.groups.tolist()))

    @torch.no_grad()
    def terms(self, batch: Batch, samples: Sequence[int], epoch: int = 0) -> Sequence[Any]:
        """What the trainer wants to train on."""
        owners = batch.groups.tolist() if self.needs.draws == "group" else samples
        own = () if batch.role == "current" else (batch.role,)
        return self.trainer.terms(self.policy, batch, Draws([(0, "conformance-terms", epoch, i, *own) for i in owners]))

    def losses(self, batch: Batch, terms: Sequence[Any], policy: Policy | None = None) -> list[Loss]:
        """The loss of each term under the weights of its role, by another policy than the problem's where given."""
        with self.policy.using(batch.role):
            return [self.trainer.loss(policy or self.policy, batch, term) for term in terms]

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

    @torch.no_grad()
    def nudge(self, size: float) -> None:
        """Move the current weights a little, as an update would, and those of roles elsewhere."""
        for seed, role in enumerate(("current", *self.needs.roles), 1):
            with self.policy.using(role):
                for parameter in self.policy.parameters:
                    parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))

    def likelihood(self, made: Made, sample: int) -> Tensor:
        """How likely the current weights are to make a sample, up to a constant and a positive factor.

        Of a stored trajectory its log-probability; of final latents `-E|v - (e - x0)|²`, which bounds it from below.
        """
        one = slice(sample, sample + 1)
        conditions = {name: tensor[one] for name, tensor in made.conditions.items()}
        stored = made.rollout[one]
        if stored.steps:
            return torch.stack([self.logprob(stored, step, conditions) for step in stored.steps]).sum()
        noise = torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(2))
        sigma = (torch.arange(256) + 0.5) / 256
        x0 = stored.final.float().expand(256, *SHAPE)
        many = {name: tensor.expand(256, *tensor.shape[1:]) for name, tensor in conditions.items()}
        v = self.policy.velocity(noised(x0, noise, sigma), sigma, many)
        return -per_sample_mean((v - (noise - x0)) ** 2).mean()

    def logprob(self, stored: Rollout, step: int, conditions: Conditions) -> Tensor:
        """How likely the current weights are to take a stored step, all samples together."""
        assert isinstance(self.scheduler, StochasticScheduler)
        x, x_next = stored.latents[step], stored.latents[step + 1]
        sigma, sigma_next = (stored.sigmas[i : i + 1] for i in (step, step + 1))
        v = self.policy.velocity(x, sigma, conditions)
        return self.scheduler.logprob(v, x, x_next, sigma, sigma_next, stored.ceiling).sum()

    def learn(self, epochs: int, groups: int, group: int, lr: float) -> tuple[float, float]:
        """Train, and return how far samples lie from the target, squared, before and after."""
        roles, parameters = self.needs.roles, self.policy.parameters
        turns = [*(name for name, role in roles.items() for _ in range(role.steps)), "current"]
        rates = {"current": lr, **{name: lr * role.lr for name, role in roles.items()}}
        optimizers = {name: torch.optim.Adam(parameters, lr=rate) for name, rate in rates.items()}
        samples = range(groups * group)
        slots = torch.arange(len(samples)) // (2 if self.needs.source == "pairs" else group)
        distances = []
        for epoch in range(epochs):
            final, batches = (self.lessons if self.needs.branches is None else self.branched)(samples, epoch, slots)
            distances.append(float(((final.double() - TARGET) ** 2).mean()))
            if not batches:
                continue  # as in a run: NaN takes no part
            units = sum(self.units(batch) for batch, _ in batches)
            # Each turn draws anew, by an epoch number of its own.
            asked = [
                [(own := attrs.evolve(batch, role=turn), self.terms(own, numbers, len(turns) * epoch + i))
                 for batch, numbers in batches]
                for i, turn in enumerate(turns)
            ]  # fmt: skip
            for turn, lessons in zip(turns, asked, strict=True):
                losses = [self.units(own) / units * self.total(self.losses(own, terms)) for own, terms in lessons]
                optimizers[turn].zero_grad()
                torch.autograd.backward(torch.stack(losses).sum())
                with self.policy.using(turn):
                    optimizers[turn].step()
            self.trainer.after_update(self.policy, Update(epoch, 0, epoch + 1, last=True))
        return distances[0], distances[-1]

    def lessons(
        self, samples: Sequence[int], epoch: int, slots: Tensor
    ) -> tuple[Tensor, list[tuple[Batch, list[int]]]]:
        """What the weights that sample make of noise, and micro-batches to learn from, with their samples' numbers."""
        made, stored = self.sample(samples, epoch, slots), self.needs.source != "rollouts"
        final = self.roll(samples, epoch, made.conditions)[0].final if stored else made.rollout.final
        advantages = self.judged(samples)
        if self.needs.scores:
            advantages = self.trainer.advantages(self.scores(made), slots)
        chosen = (~advantages.isnan().reshape(len(slots), -1).all(1)).nonzero().flatten()
        return final, [(self.batch(made, advantages, chosen), chosen.tolist())] if len(chosen) else []

    def branched(
        self, samples: Sequence[int], epoch: int, slots: Tensor
    ) -> tuple[Tensor, list[tuple[Batch, list[int]]]]:
        """The same where trajectories branch; samples are starts, and the branches of each step a micro-batch."""
        assert self.needs.branches is not None
        growth = grown(self.needs.branches, self.steps, STEPS)
        conditions = {"shift": 0.1 * (slots % 3 - 1).float()[:, None].expand(-1, *SHAPE)}
        keys = [(0, "conformance", epoch, i) for i in samples]
        noise = draw_noise([(*k, "start") for k in keys], [(*k, "steps") for k in keys], SHAPE, len(growth.steps))
        with self.policy.using(self.needs.rollout):
            sigmas, most = schedule(STEPS), len(samples) * len(growth.leaves)
            parts, final = branch(self.policy, self.scheduler, sigmas, growth, noise, conditions, torch.float32, most)
        near = -((final.double() - TARGET) ** 2).mean(2)
        logprobs = torch.cat([part.logprobs[part.steps[0]].reshape(len(slots), -1) for part in parts], dim=1)
        everywhere, weights = [growth] * len(slots), {"near": 1.0}
        scores, groups = of_branches(self.needs.branches, everywhere, slots, {"near": near}, weights, logprobs)
        A, numbers = self.trainer.advantages(scores, groups), torch.arange(len(groups)).reshape(len(slots), -1)
        batches = []
        for part in parts:
            own = numbers[:, torch.tensor(growth.steps) == part.steps[0]]
            many = {name: tensor.repeat_interleave(own.shape[1], 0) for name, tensor in conditions.items()}
            chosen = (~A[own.flatten()].isnan()).nonzero().flatten()
            made = Made(part, many, slots.repeat_interleave(own.shape[1]))
            if len(chosen):
                batches.append((self.batch(made, A[own.flatten()], chosen), own.flatten()[chosen].tolist()))
        return final, batches


def parts_of(losses: Sequence[Loss]) -> Mapping[str, Tensor]:
    """Each part `()`, averaged over the terms that have it."""
    names = dict.fromkeys(name for loss in losses for name in loss.parts)
    return {name: torch.stack([loss.parts[name] for loss in losses if name in loss.parts]).mean() for name in names}
