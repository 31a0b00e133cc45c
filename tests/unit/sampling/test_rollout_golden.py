"""Whole trajectories, and how they are stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory.builtin import CPSSpec, DanceSDESpec, FlowSDESpec, ODESpec
from flowfactory.contracts.scheduler import Scheduler, to_storage
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.cps import CPS
from flowfactory.schedulers.dance_sde import DanceSDE
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.schedulers.ode import ODE
from support import GRID, STORAGE, Case, FieldPolicy, close, each
from torch import Tensor


def scheduler_of(name: str, eta: float) -> Scheduler[Any]:
    """The scheduler a golden names."""
    if name == "ODE":
        return ODE(ODESpec())
    if name == "Flow-SDE":
        return FlowSDE(FlowSDESpec(eta=eta))
    return CPS(CPSSpec(eta=eta)) if name == "CPS" else DanceSDE(DanceSDESpec(eta=eta))


@each("rollout")
def test_trajectories_equal_flow_factory(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    sigmas, steps = torch.tensor(given["sigmas"]), tuple(given["sde_steps_this_epoch"])

    def recorded(x: Tensor, sigma: Tensor) -> Tensor:
        (step,) = (sigmas[:-1] == sigma[0]).nonzero().flatten().tolist()
        return given["velocities"][step]

    scheduler = scheduler_of(given["dynamics"], given["eta"])
    noise = Noise(given["x_start"], given["noises"][list(steps)].transpose(0, 1))
    ours = rollout(FieldPolicy(recorded), scheduler, sigmas, steps, noise, {}, torch.float32)
    assert set(ours.latents) == {i for step in steps for i in (step, step + 1)} | {given["N"]}
    for i, x in ours.latents.items():
        close(x, expected["latents"][i], 2e-6)
    assert set(ours.logprobs) == {int(i) for i in expected["log_probs"]}
    for i, logprob in ours.logprobs.items():
        close(logprob, expected["log_probs"][str(i)], 5e-6)


@each("storage_rounding")
def test_what_is_stored_is_rounded_before_it_is_scored(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    x, v, noise = given["latents"], given["velocity"], given["noise"]
    levels = torch.full((len(x),), given["sigma"]), torch.full((len(x),), given["sigma_next"])
    scheduler = scheduler_of(case["name"].split("_")[0], given["eta"])
    step = scheduler.step(v, x, *levels, given["sigma_max"], noise, x.dtype)
    assert step.x.dtype == x.dtype
    close(step.x, expected["next_latents"], 1e-5)  # a tie may round either way: one unit in the last place
    assert (step.x.float() == expected["next_latents"]).float().mean() > 0.95
    close(step.logprob, expected["log_prob"], 5e-6)
    replay = scheduler.logprob(v, x, step.x, *levels, given["sigma_max"])
    assert torch.equal(replay, step.logprob)


def test_scoring_before_rounding_would_show() -> None:
    """The reason for the rule: in bfloat16 the on-policy log-ratio would exceed the clip width of GRPO-Guard, 2e-6."""
    generator = torch.Generator().manual_seed(0)
    x, v, noise = torch.randn(3, 16, 65536, generator=generator).unbind()
    scheduler, levels = FlowSDE(FlowSDESpec(eta=0.7)), (torch.full((16,), 0.25), torch.full((16,), 0.2))
    exact = scheduler.step(v, x, *levels, 0.96, noise, torch.float32)
    rounded = scheduler.step(v, x, *levels, 0.96, noise, torch.bfloat16)
    assert (exact.logprob - rounded.logprob).abs().max() > 1e-5


def test_float16_saturates() -> None:
    stored = to_storage(torch.tensor([1e6, -1e6, 1.0]), torch.float16)
    assert stored.tolist() == [65504.0, -65504.0, 1.0]


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 3, 3), (2, 4, 2, 3, 3)], ids=lambda s: f"rank{len(s)}")
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("name", ["Flow-SDE", "Dance-SDE", "CPS"])
def test_the_chain_continues_from_what_is_stored(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Replaying every stored transition gives its stored log-probability to the last bit."""
    scheduler, steps = scheduler_of(name, 0.5), (0, 1, 2, 5)
    policy = FieldPolicy(lambda x, sigma: (0.3 * x.float() + 0.1).to(dtype))
    noise = Noise(torch.randn(shape), torch.randn(shape[0], len(steps), *shape[1:]))
    trajectory = rollout(policy, scheduler, GRID, steps, noise, {}, dtype)
    for step in steps:
        x, x_next = trajectory.latents[step], trajectory.latents[step + 1]
        assert x.dtype == x_next.dtype == dtype
        levels = GRID[step].expand(shape[0]), GRID[step + 1].expand(shape[0])
        v = policy.velocity(x, levels[0], {})
        replay = scheduler.logprob(v, x, x_next, *levels, trajectory.ceiling)
        assert torch.equal(replay, trajectory.logprobs[step])
