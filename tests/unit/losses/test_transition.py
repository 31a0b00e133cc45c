"""A stored step as trainers read it: what was sampled, and by which Gaussian."""

from __future__ import annotations

import attrs
import pytest
import torch
from flowfactory import Transition
from flowfactory.builtin import DanceSDESpec, ODESpec
from flowfactory.contracts.types import Batch
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.dance_sde import DanceSDE
from flowfactory.schedulers.ode import ODE
from support import GRID, FieldPolicy, close

SCHEDULER = DanceSDE(DanceSDESpec(eta=0.5))


def test_it_is_what_was_sampled() -> None:
    noise, policy = Noise(torch.randn(3, 2, 4), torch.randn(3, 2, 2, 4)), FieldPolicy(lambda x, sigma: 0.3 * x)
    made = rollout(policy, SCHEDULER, GRID, (4, 5), noise, {}, torch.float32, "steps")
    at = Transition.of(Batch(made, {}, torch.zeros(3), True, SCHEDULER), 5)
    assert (at.sigma.tolist(), at.sigma_next.tolist()) == ([float(GRID[5])] * 3, [float(GRID[6])] * 3)
    v = at.velocity(policy, Batch(made, {}, torch.zeros(3), True, SCHEDULER))
    assert torch.equal(at.score(v), at.logprob)
    close(at.std(), torch.full((3,), 0.5 * float(GRID[5] - GRID[6]) ** 0.5), 1e-6)
    close((at.x_next - at.moments(v).mean) / at.moments(v).std, noise.steps[:, 1], 1e-5)


def test_a_deterministic_scheduler_has_none() -> None:
    noise = Noise(torch.randn(3, 2, 4), torch.empty(3, 0, 2, 4))
    made = rollout(FieldPolicy(lambda x, sigma: x), ODE(ODESpec()), GRID, (), noise, {}, torch.float32, "states")
    batch = Batch(made, {}, torch.zeros(3), True, SCHEDULER)
    with pytest.raises(TypeError, match="ODE has no log-probabilities; use a stochastic scheduler"):
        Transition.of(attrs.evolve(batch, scheduler=ODE(ODESpec())), 2)
