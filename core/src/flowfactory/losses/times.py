"""The noise levels decoupled trainers train at, drawn per sample.

    uniform        sigma = f_a(u)                       f_a(s) = a s / (1 + (a - 1) s), the shift towards noise
    logit-normal   sigma = f_a(sigmoid(mean + std z))   Esser et al. 2024, arXiv:2403.03206
    mode           sigma = f_a(u + peak (cos²(pi u / 2) - 1 + u))   the same
    discrete…      a level of the sampling schedule     AWM, arXiv:2509.25050
    subset         several different ones of them       DiffusionNFT, arXiv:2509.16117

The first two are cut to a range of sigma after the shift. With a `table` of n levels, what is shifted is first rounded
up to whole nths: so diffusers' scripts draw, who take entry `floor(n (1 - s))` of a table that falls from 1. Of `count`
levels, each lies in its own stratum of equal probability; strata of schedule steps have whole-numbered ends. Every step
can be drawn, the last one too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowfactory.contracts.scheduler import like_latents
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Times
from flowfactory.contracts.trainer import Policy
from flowfactory.contracts.types import Batch, Rollout


def noised(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`(1 - sigma) x0 + sigma noise`, float32; `sigma` is `(B,)`."""
    level = like_latents(sigma, x0)
    return (1 - level) * x0.float() + level * noise


def noise_levels(times: Times, sigmas: Tensor, draws: Draws) -> Tensor:
    """Noise levels `(count, B)`, float32 on the CPU; `sigmas` `(T+1,)` is the sampling schedule, which ends at 0."""
    schedule = sigmas[:-1]
    if times.rule == "subset":
        return schedule[draws.permutation(len(schedule))[:, : times.drawn(len(schedule))]].T
    count = times.drawn(len(schedule))
    if times.rule.startswith("discrete"):
        return schedule[_steps(times, int(len(schedule) * (times.fraction or 1)), count, draws)].T
    u = draws.uniform(count).double() + 2**-25  # the middle of a float32's cell, so that none is at an end of the range
    return continuous(times, strata(u)).float().T


def levels_and_noise(times: Times, rollout: Rollout, draws: Draws) -> list[tuple[Tensor, Tensor]]:
    """Noise levels `(B,)` to train the samples of a rollout at, each with noise `(B, …)`; float32, where these are."""
    x0 = rollout.final
    levels = noise_levels(times, rollout.sigmas, draws)
    return [(sigma.to(x0.device), draws.normal(*x0.shape[1:]).to(x0.device)) for sigma in levels]


def velocities(
    policy: Policy, batch: Batch, at: Sequence[tuple[Tensor, Tensor]], guidance: float | None = None
) -> list[Tensor]:
    """A policy's velocities `(B, …)` at a batch's samples under some `levels_and_noise`, with the weights in use."""
    x0 = batch.rollout.final
    return [policy.velocity(noised(x0, noise, sigma), sigma, batch.conditions, guidance) for sigma, noise in at]


def possible(times: Times, sigmas: Tensor) -> Tensor:
    """The noise levels that may be drawn `(n,)`; of a continuous rule, a thousand of them."""
    schedule = sigmas[:-1]
    if times.rule == "subset":
        return schedule
    if times.rule.startswith("discrete"):
        first = 1 if times.rule == "discrete-without-first" else 0
        return schedule[first : int(len(schedule) * (times.fraction or 1))]
    return torch.linspace(*(times.range or (0.01, 1.0)), 1000)


def _steps(times: Times, end: int, count: int, draws: Draws) -> Tensor:
    """Steps `(B, count)` out of `0 … end-1`."""
    if times.rule == "discrete":
        return step_strata(draws.uniform(count), 0, end)
    if times.rule == "discrete-without-first":
        return step_strata(draws.uniform(count), 1, end)
    first = torch.zeros(len(draws), 1, dtype=torch.long)
    return torch.cat([first, step_strata(draws.uniform(count - 1), 1, end)], dim=1)


def strata(u: Tensor) -> Tensor:
    """Uniform draws `(B, n)`, the k-th moved into the k-th of n equal parts of [0, 1)."""
    return (torch.arange(u.shape[1]) + u) / u.shape[1]


def step_strata(u: Tensor, first: int, end: int) -> Tensor:
    """Uniform draws `(B, n)` as steps, the k-th from the k-th part of `first … end-1`; parts differ by one at most."""
    n = u.shape[1]
    edges = first + torch.arange(n + 1) * (end - first) // max(n, 1)
    return edges[:-1] + (u * (edges[1:] - edges[:-1])).long()


def continuous(times: Times, u: Tensor) -> Tensor:
    """The noise levels at quantiles `u` of a rule that is no schedule's, cut to its range; any shape, float64."""
    shift, mean, std = times.shift or 1.0, times.mean or 0.0, times.std or 1.0
    whole = (0.0, 1.0) if times.rule == "mode" else (0.01, 1.0)
    ends = torch.tensor(times.range or whole, dtype=torch.float64)
    low, high = shifted(ends, 1 / shift).clamp(0, 1)
    if times.rule == "uniform":
        levels = low + u * (high - low)
    elif times.rule == "mode":
        peak = 1.29 if times.peak is None else times.peak
        levels = u + peak * (torch.cos(math.pi * u / 2).square() - 1 + u)
    else:
        first, last = ((torch.logit(end) - mean) / std for end in (low, high))
        levels = torch.sigmoid(mean + std * cut_normal(first, last, u))
    if times.table is not None:
        levels = (levels * times.table).ceil().clamp(1, times.table) / times.table
    return shifted(levels, shift).clamp(*ends)


def cut_normal(low: Tensor, high: Tensor, u: Tensor) -> Tensor:
    """The quantiles `u` of a standard normal cut to `low … high`, by the tail that is nearer, where digits are left."""
    if low > 0:
        return -cut_normal(-high, -low, 1 - u)
    start, end = (0.5 * torch.special.erfc(-x / math.sqrt(2)) for x in (low, high))  # `ndtr` has no digits left there
    quantiles: Tensor = torch.special.ndtri(start + u * (end - start))
    return quantiles


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """`f_a(sigma)`, towards noise for `a > 1`; its inverse is `f_1/a`."""
    return shift * sigma / (1 + (shift - 1) * sigma)
