"""Whole trajectories, and how they are stored."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from flowfactory.builtin import CPSSpec, DanceSDESpec, FlowSDESpec, ODESpec
from flowfactory.contracts.scheduler import Scheduler, to_storage
from flowfactory.contracts.types import Conditions
from flowfactory.sampling.rollout import Noise, Trunks, rollout
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


@each("rollout")
def test_states_are_all_latents_and_final_ones_the_last(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    sigmas, steps = torch.tensor(given["sigmas"]), tuple(given["sde_steps_this_epoch"])
    scheduler = scheduler_of(given["dynamics"], given["eta"])
    noise = Noise(given["x_start"], given["noises"][list(steps)].transpose(0, 1))

    def recorded(x: Tensor, sigma: Tensor) -> Tensor:
        return given["velocities"][(sigmas[:-1] == sigma[0]).nonzero().item()]

    policy = FieldPolicy(recorded)
    states = rollout(policy, scheduler, sigmas, steps, noise, {}, torch.float32, "states")
    assert set(states.latents) == set(range(given["N"] + 1))
    for i, x in states.latents.items():
        close(x, expected["latents"][i], 2e-6)
    assert states.steps == steps
    assert set(states.logprobs) == set(steps)
    final = rollout(policy, scheduler, sigmas, steps, noise, {}, torch.float32, "final")
    assert (final.steps, set(final.latents), final.logprobs) == ((), {given["N"]}, {})
    assert torch.equal(final.final, states.final)


@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("kept", ["steps", "states"])
def test_samples_of_the_same_noise_share_the_steps_before_the_first_stochastic_one(
    kept: Literal["steps", "states"], first: int
) -> None:
    trunks, steps, asked = Trunks.by([4, 4, 7, 4, 7]), (first, first + 2), list[int]()
    start = torch.randn(2, 3, 4)[trunks.of]
    noise, conditions = Noise(start, torch.randn(5, 2, 3, 4)), {"prompt": torch.tensor([4.0, 4, 7, 4, 7])}

    class Prompted(FieldPolicy):
        def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float | None = None) -> Tensor:
            asked.append(len(x))
            return 0.1 * x * conditions["prompt"][:, None, None] + sigma[:, None, None]

    policy, scheduler = Prompted(start), FlowSDE(FlowSDESpec(eta=0.5))
    shared, alone = (
        rollout(policy, scheduler, GRID, steps, noise, conditions, torch.float32, kept, one) for one in (trunks, None)
    )
    count = len(GRID) - 1
    assert asked == [2] * first + [5] * (count - first) + [5] * count
    assert shared.latents.keys() == alone.latents.keys()
    for i, x in alone.latents.items():
        assert torch.equal(shared.latents[i], x), i
    for i, logprob in alone.logprobs.items():
        assert torch.equal(shared.logprobs[i], logprob)
    assert not torch.equal(shared.final[0], shared.final[1])
