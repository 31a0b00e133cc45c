"""Deterministic solvers against other implementations, and against the exact solution on Gaussian data."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import scheduling_sasolver
from flowfactory.builtin import DPMSolverSpec, HeunSpec, ODESpec, SASolverSpec, UniPCSpec
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.schedulers.dpm_solver import DPMSolver, Previous
from flowfactory.schedulers.heun import Heun
from flowfactory.schedulers.ode import ODE
from flowfactory.schedulers.sa_solver import SASolver
from flowfactory.schedulers.unipc import UniPC
from support import GRID, Case, close, each
from torch import Tensor

EULER, DPM, UNIPC = ODE(ODESpec()), DPMSolver(DPMSolverSpec()), UniPC(UniPCSpec())
HEUN, SA = Heun(HeunSpec()), SASolver(SASolverSpec())
SECOND = pytest.mark.parametrize("scheduler", [DPM, UNIPC, SA], ids=["dpm-solver", "unipc", "sa-solver"])
MEAN, SPREAD = 0.3, 0.6
START = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))


def field(x: Tensor, sigma: Tensor, spread: float = SPREAD) -> Tensor:
    """The exact velocity for data `N(MEAN, spread²)`, in the dtype of `x`; `sigma` meets `x`."""
    power = (1 - sigma) ** 2 * spread**2 + sigma**2
    return (sigma - (1 - sigma) * spread**2) / power * (x - (1 - sigma) * MEAN) - MEAN


def solve(scheduler: Scheduler[Any], sigmas: Tensor, x: Tensor, spread: float = SPREAD) -> list[Tensor]:
    """Every state of a trajectory from `x`."""
    state, states = scheduler.start(), [x]
    for sigma, sigma_next in pairwise(sigmas):
        here = sigma.expand(len(x)), sigma_next.expand(len(x))
        v = scheduler.look(lambda at, s: field(at.double(), s.double()[:, None], spread).float(), x, *here)
        x, state = scheduler.advance(state, v, x, *here)
        states.append(x)
    return states


def solve_with_diffusers(scheduler: Any, x: Tensor) -> list[Tensor]:
    states = [x]
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        x = scheduler.step(field(x.double(), sigma.double()).float(), t, x).prev_sample
        states.append(x)
    return states


# --- other implementations -----------------------------------------------------------------------------------------


@each("ode_solvers", lambda case: "sigmas" in case["inputs"])
def test_dpm_solver_equals_nft_and_diffusers(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    states = solve(DPM, torch.tensor(given["sigmas"]), given["x_start"])
    close(states[2], expected["x_after_step_2"], 2e-6)
    close(states[-1], expected["x_final"], 2e-6)
    exact = given["data_mean"] + given["data_std"] * given["x_start"].double()
    assert (states[-1] - exact).abs().max().item() == pytest.approx(expected["max_error_vs_exact_ode"], abs=1e-3)


@each("ode_solvers", lambda case: case["name"] == "mixgrpo_dpmpp2_single_step_ode")
def test_dpm_solver_equals_mixgrpos_step(case: Case) -> None:
    given, x = case["inputs"], case["inputs"]["latents"]
    before, here, after = (torch.full((len(x),), given[n]) for n in ("sigma_prev", "sigma", "sigma_next"))
    v = (x - given["x0_pred"]) / given["sigma"]
    x_next, state = DPM.advance(Previous(given["x0_pred_prev"].float(), before.double()), v, x, here, after)
    close(x_next, case["outputs"]["x_next"], 5e-6)
    close(state.data, given["x0_pred"], 2e-6)


@pytest.mark.parametrize("steps", [2, 3, 8, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("ours", [DPM, UNIPC], ids=["dpm-solver", "unipc"])
def test_solvers_equal_diffusers(ours: Scheduler[Any], shift: float, steps: int) -> None:
    """diffusers computes the coefficients in float32, we in float64."""
    theirs_class = DPMSolverMultistepScheduler if ours is DPM else UniPCMultistepScheduler
    theirs = theirs_class(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)
    theirs.set_timesteps(steps)
    expected = solve_with_diffusers(theirs, START)
    for a, b in zip(solve(ours, theirs.sigmas, START)[1:], expected[1:], strict=True):
        close(a, b, 2e-5)


@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_equals_diffusers(shift: float, steps: int) -> None:
    theirs = FlowMatchHeunDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    x = START
    for t in theirs.timesteps:
        x = theirs.step(field(x, t / 1000), t, x).prev_sample
    levels = torch.cat([theirs.sigmas[:1], theirs.sigmas[1::2]])
    close(solve(HEUN, levels, START)[-1], x, 2e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_sa_solver_equals_diffusers(monkeypatch: pytest.MonkeyPatch, tau: float, shift: float) -> None:
    """All but the last step, which diffusers does not lead to 0; and the first, which AWM's authors do not correct."""
    theirs = SASolverScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift, tau_func=lambda t: tau
    )
    theirs.set_timesteps(8)
    noises = torch.randn(8, *START.shape, generator=torch.Generator().manual_seed(5))
    drawn = iter(noises)
    monkeypatch.setattr(scheduling_sasolver, "randn_tensor", lambda *_, **__: next(drawn))
    ours, x, y, state = SASolver(SASolverSpec(tau=tau)), START, START, None
    for i, t in enumerate(theirs.timesteps[:7]):
        sigma, sigma_next = theirs.sigmas[i], theirs.sigmas[i + 1]
        here = sigma.expand(len(x)), sigma_next.expand(len(x))
        if i == 1:
            theirs.last_sample = None
        x = theirs.step(field(x.double(), sigma.double()).float(), t, x).prev_sample
        y, state = ours.diffuse(state, field(y.double(), sigma.double()).float(), y, *here, noises[i])
        close(y, x, 5e-5)


def test_without_noise_sa_solvers_stochastic_steps_are_its_deterministic_ones() -> None:
    quiet, x, states = SASolver(SASolverSpec(tau=0.0)), START, solve(SA, GRID, START)
    state = None
    for i in range(9):
        here = GRID[i].expand(3), GRID[i + 1].expand(3)
        x, state = quiet.diffuse(state, field(x.double(), GRID[i].double()).float(), x, *here, torch.ones_like(x))
        assert torch.equal(x, states[i + 1])


# --- order and limits ----------------------------------------------------------------------------------------------


def error(scheduler: Scheduler[Any], steps: int, spread: float = 1.5) -> float:
    """The largest error where the trajectory has reached sigma 0.2, on a grid even in log-SNR from 0.8."""
    levels = torch.sigmoid(torch.linspace(math.log(4), -math.log(4), steps + 1, dtype=torch.float64))
    stds = ((1 - levels) ** 2 * spread**2 + levels**2).sqrt()
    start, end = ((1 - levels[i]) * MEAN + stds[i] * START.double() for i in (0, -1))
    return (solve(scheduler, levels.float(), start.float(), spread)[-1] - end).abs().max().item()


@pytest.mark.parametrize(
    ("scheduler", "order"),
    [(EULER, 1), (DPM, 2), (HEUN, 2), (UNIPC, 3)],
    ids=["ode", "dpm-solver", "heun", "unipc"],
)
def test_order(scheduler: Scheduler[Any], order: int) -> None:
    """UniPC's second-order predictor gains an order from its corrector."""
    assert math.log2(error(scheduler, 16) / error(scheduler, 32)) == pytest.approx(order, abs=0.3)


def test_sa_solver_is_of_second_order_at_least() -> None:
    """Its corrector gains an order on the way there; where float32 ends it is as exact as the others."""
    errors = [error(SA, steps) for steps in (8, 16, 32)]
    assert all(math.log2(few / many) > 2 for few, many in pairwise(errors))
    assert errors[-1] < error(DPM, 32)


def test_higher_order_pays() -> None:
    assert error(UNIPC, 16) < error(DPM, 16) < error(EULER, 16) / 10


@SECOND
def test_the_first_step_is_euler_and_the_last_lands_on_the_data_estimate(scheduler: Scheduler[Any]) -> None:
    """From sigma 1, where the log-SNR is infinite, to sigma 0, where it is again; nothing is NaN in between."""
    states = solve(scheduler, GRID, START)
    assert all(state.isfinite().all() for state in states)
    close(states[1], solve(EULER, GRID[:2], START)[1], 2e-6)
    last = states[-2] - GRID[-2] * field(states[-2], GRID[-2])
    close(states[-1], last, 5e-6)


@SECOND
def test_batches_do_not_meet(scheduler: Scheduler[Any]) -> None:
    """Interleaved trajectories give what each gives alone: all memory is in the state that is passed along."""
    alone = [solve(scheduler, GRID, START[i : i + 1])[-1] for i in range(2)]
    x, states = [START[:1], START[1:2]], [scheduler.start(), scheduler.start()]
    for sigma, sigma_next in pairwise(GRID):
        for i in range(2):
            v = field(x[i].double(), sigma.double()).float()
            x[i], states[i] = scheduler.advance(states[i], v, x[i], sigma[None], sigma_next[None])
    assert torch.equal(x[0], alone[0])
    assert torch.equal(x[1], alone[1])
