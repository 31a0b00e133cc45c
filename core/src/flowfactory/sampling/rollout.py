"""Sampling trajectories: the velocity field of a policy and the steps of a scheduler, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.scheduler import NoisyScheduler, Scheduler, StochasticScheduler, to_storage
from flowfactory.contracts.seeds import Draws, Key
from flowfactory.contracts.trainer import Policy
from flowfactory.contracts.types import Conditions, Rollout
from flowfactory.losses.transition import field_of


@attrs.frozen(eq=False)
class Noise:
    """Everything random about some trajectories: `start` `(B, …)` and, per stochastic step, `steps` `(B, n, …)`."""

    start: Tensor
    steps: Tensor

    def to(self, device: torch.device) -> Noise:
        """The same noise on `device`."""
        return Noise(self.start.to(device, non_blocking=True), self.steps.to(device, non_blocking=True))


@attrs.frozen(eq=False)
class Trunks:
    """How samples that start from the same noise share the deterministic steps before the first stochastic one.

    of: for each sample, the number of its trunk `(B,)`. first: for each trunk, its first sample `(trunks,)`.
    """

    of: Tensor
    first: Tensor

    @staticmethod
    def by(groups: Sequence[int]) -> Trunks:
        """One trunk for each distinct entry of `groups` `(B,)`, in order of appearance."""
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        first = [groups.index(group) for group in numbers]
        return Trunks(torch.tensor([numbers[group] for group in groups]), torch.tensor(first))


def draw_noise(start: Sequence[Key], steps: Sequence[Key], shape: tuple[int, ...], count: int) -> Noise:
    """Noise for samples named by their keys, `count` stochastic steps each."""
    return Noise(Draws(start).normal(*shape), Draws(steps).normal(count, *shape))


@torch.no_grad()
def rollout(
    policy: Policy,
    scheduler: Scheduler[Any],
    sigmas: Tensor,
    steps: tuple[int, ...],
    noise: Noise,
    conditions: Conditions,
    storage: torch.dtype,
    trajectory: Literal["final", "steps", "states"] = "steps",
    trunks: Trunks | None = None,
    told: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Rollout:
    """Sample from noise to data.

    The chain always continues from the stored (rounded) latents, so a stored transition is exactly what happened.

    Args:
        sigmas: noise levels `(T+1,)`, float32, on the CPU.
        steps: the stochastic steps; all others are deterministic.
        noise: on the device of the conditions.
        storage: the dtype latents are kept in.
        trajectory: what to keep: see `Needs`.
        trunks: who shares the steps before the first stochastic one, which are then sampled once per trunk.
        told: hears of each step's number, latents and velocity.
    """
    x = to_storage(noise.start, storage)
    noisy = isinstance(scheduler, NoisyScheduler)  # its state would have to branch as well
    device, branching = x.device, min(steps, default=0) if trunks and not noisy else 0
    levels = sigmas.to(device)[:, None]
    trunk_conditions = conditions
    if trunks and branching:
        x = x[trunks.first.to(device)]
        trunk_conditions = {name: tensor[trunks.first.to(device)] for name, tensor in conditions.items()}
    ceiling, state = float(sigmas[1]), scheduler.start()
    latents: dict[int, Tensor] = {}
    logprobs: dict[int, Tensor] = {}
    means: dict[int, Tensor] = {}
    for i in range(len(sigmas) - 1):
        if trunks and i == branching > 0:
            x = x[trunks.of.to(device)]
        sigma, sigma_next = levels[i : i + 2].expand(-1, len(x))
        v = scheduler.look(field_of(policy, trunk_conditions if i < branching else conditions), x, sigma, sigma_next)
        if told:
            told(i, x, v)
        if trajectory == "states":
            latents[i] = x[trunks.of.to(device)] if trunks and i < branching else x
        if i not in steps:
            moved, state = scheduler.advance(state, v, x, sigma, sigma_next)
            x = to_storage(moved, storage)
            continue
        if isinstance(scheduler, NoisyScheduler):
            moved, state = scheduler.diffuse(state, v, x, sigma, sigma_next, noise.steps[:, steps.index(i)].float())
            x = to_storage(moved, storage)
            continue
        if not isinstance(scheduler, StochasticScheduler):
            raise TypeError(f"{type(scheduler).__name__} has no stochastic steps")
        step = scheduler.step(v, x, sigma, sigma_next, ceiling, noise.steps[:, steps.index(i)], storage)
        if trajectory != "final":
            latents |= {i: x, i + 1: step.x}
            logprobs[i], means[i] = step.logprob, step.mean
        x = step.x
    latents[len(sigmas) - 1] = x
    return Rollout(sigmas, () if trajectory == "final" or noisy else steps, latents, logprobs, means)


@torch.no_grad()
def complete(
    policy: Policy,
    scheduler: Scheduler[Any],
    sigmas: Tensor,
    first: int,
    x: Tensor,
    conditions: Conditions,
    storage: torch.dtype,
) -> Tensor:
    """What latents `x` `(B, …)` before step `first` become by the rest of the steps, all of them without noise."""
    levels, state = sigmas.to(x.device)[:, None], scheduler.start()
    for i in range(first, len(sigmas) - 1):
        sigma, sigma_next = levels[i : i + 2].expand(-1, len(x))
        v = scheduler.look(field_of(policy, conditions), x, sigma, sigma_next)
        moved, state = scheduler.advance(state, v, x, sigma, sigma_next)
        x = to_storage(moved, storage)
    return x
