"""The stochastic schedulers against their authors' numbers and against the mathematics they claim."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from flowfactory.builtin import CPSSpec, DanceSDESpec, FlowSDESpec, LinearSDESpec, ODESpec
from flowfactory.contracts.scheduler import StochasticScheduler, euler
from flowfactory.schedulers.cps import CPS
from flowfactory.schedulers.dance_sde import DanceSDE
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.schedulers.linear_sde import LinearSDE
from flowfactory.schedulers.ode import ODE
from hypothesis import given, settings
from hypothesis import strategies as st
from support import GRID, STORAGE, Case, close, each
from torch import Tensor
from torch.distributions import Normal

SHAPES = [(3, 5, 4), (3, 2, 3, 4), (3, 2, 2, 3, 4)]
MIXED = torch.tensor([1.0, 0.7, 0.3]), torch.tensor([0.9, 0.5, 0.2])
STOCHASTIC = [
    FlowSDE(FlowSDESpec(eta=0.7)),
    DanceSDE(DanceSDESpec(eta=0.3)),
    LinearSDE(LinearSDESpec()),
    CPS(CPSSpec(eta=0.8)),
]
every_stochastic = pytest.mark.parametrize("scheduler", STOCHASTIC, ids=lambda s: type(s).__name__)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"rank{len(s)}")


def batch(value: float | list[float], x: Tensor) -> Tensor:
    """A noise level, or one per sample, as `(B,)` in the dtype of `x`."""
    return torch.as_tensor(value, dtype=x.dtype).expand(len(x))


def row(*values: float) -> Tensor:
    """One float64 sample `(1, n)`."""
    return torch.tensor([values], dtype=torch.float64)


def column(per_sample: Tensor, x: Tensor) -> Tensor:
    return per_sample.reshape(-1, *[1] * (x.dim() - 1))


def replayed(scheduler: StochasticScheduler[Any], case: Case, ceiling: float = 0.5) -> dict[str, Tensor]:
    """Mean, standard deviation, sample and log-probability of a golden step, in the golden's own precision."""
    given = case["inputs"]
    x, v = given["latents"], given["velocity"]
    sigma, sigma_next = batch(given["sigma"], x), batch(given["sigma_next"], x)
    ceiling = given.get("sigma_max", ceiling)
    moments = scheduler.moments(v, x, column(sigma, x), column(sigma_next, x), ceiling)
    x_next = given["next_latents"] if "next_latents" in given else moments.mean + moments.std * given["noise"]
    logprob = scheduler.logprob(v, x, x_next, sigma, sigma_next, ceiling)
    return {"mean": moments.mean, "std": moments.std.flatten(), "x": x_next, "logprob": logprob}


def is_float64(case: Case) -> bool:
    return bool(case["precision"] == "f64")


# --- goldens -------------------------------------------------------------------------------------------------------


@each("flow_sde", lambda case: "noise" in case["inputs"])
def test_flow_sde_equals_the_authors(case: Case) -> None:
    expected, ours = case["outputs"], replayed(FlowSDE(FlowSDESpec(eta=case["inputs"]["eta"])), case)
    close(ours["mean"], expected["mean"], 2e-6)
    close(ours["std"], expected["total_std"], 2e-6)
    close(ours["x"], expected["next_latents"], 2e-6)
    close(ours["logprob"], expected["log_prob"], 5e-6)
    close(ours["x"], expected["flow_factory"]["next_latents"], 2e-6)
    close(ours["logprob"], expected["flow_factory"]["log_prob"], 5e-6)


@each("flow_sde", is_float64)
def test_flow_sde_in_float64(case: Case) -> None:
    ours = replayed(FlowSDE(FlowSDESpec(eta=case["inputs"]["eta"])), case)
    close(ours["mean"], case["outputs"]["mean"], 1e-12)
    close(ours["std"], case["outputs"]["total_std"], 1e-12)
    close(ours["logprob"], case["outputs"]["log_prob"], 5e-6)


@each("flow_sde", lambda case: case["inputs"]["eta"] == 0)
def test_flow_sde_without_noise_is_the_deterministic_step(case: Case) -> None:
    """The authors' log-probability is NaN there; ours has no such step, `eta` must be positive."""
    x, v = case["inputs"]["latents"], case["inputs"]["velocity"]
    assert case["outputs"]["official_log_prob"].isnan().all()
    ours = euler(v, x, batch(case["inputs"]["sigma"], x), batch(case["inputs"]["sigma_next"], x))
    close(ours, case["outputs"]["next_latents"], 2e-6)
    with pytest.raises(ValueError, match="greater than 0"):
        FlowSDESpec(eta=0.0)


@each("dance_sde")
def test_dance_sde_equals_the_authors(case: Case) -> None:
    expected, ours = case["outputs"], replayed(DanceSDE(DanceSDESpec(eta=case["inputs"]["eta"])), case)
    close(ours["mean"], expected["mean"], 1e-12 if is_float64(case) else 2e-6)
    close(ours["logprob"], expected["log_prob"], 5e-6, 1e-6)
    if not is_float64(case):
        close(ours["std"], batch(expected["total_std"], ours["std"]), 2e-6)
        close(ours["x"], expected["next_latents"], 2e-6)


@each("flash_grpo", lambda case: "latents" in case["inputs"])
def test_linear_sde_equals_the_authors(case: Case) -> None:
    """Flash-GRPO's step, which is Flow-GRPO's for Wan, at steps of its own for each sample."""
    given, expected, scheduler = case["inputs"], case["outputs"], LinearSDE(LinearSDESpec())
    exact = case["precision"] == "float64"
    x, sigmas = given["latents"], given["sigmas"].to(given["latents"].dtype)
    steps = torch.tensor(given["step"])
    sigma, sigma_next, ceiling = sigmas[steps], sigmas[steps + 1], float(sigmas[1])
    for v, mean, logprob in (("velocity_old", "mean_old", "old_log_prob"), ("velocity", "mean", "log_prob")):
        moments = scheduler.moments(given[v], x, column(sigma, x), column(sigma_next, x), ceiling)
        close(moments.mean, expected[mean], 1e-12 if exact else 2e-6)
        close(moments.std.flatten(), expected["std"], 1e-12 if exact else 2e-6)
        close(moments.std.flatten() / (sigma - sigma_next).sqrt(), expected["diffusion"], 1e-12 if exact else 2e-6)
        ours = scheduler.logprob(given[v], x, given["next_latents"], sigma, sigma_next, ceiling)
        close(ours, expected[logprob], 5e-6)


@each("flash_grpo", lambda case: "latents" in case["inputs"])
def test_flash_grpos_weight_levels_the_gradient_of_linear_sde(case: Case) -> None:
    """Its lambda is `S / (c D)`, what the log-probability's gradient has to be multiplied by to lose its step."""
    given, scheduler = case["inputs"], LinearSDE(LinearSDESpec())
    x, sigmas = given["latents"], given["sigmas"].to(given["latents"].dtype)
    steps = torch.tensor(given["step"])
    sigma, sigma_next = column(sigmas[steps], x), column(sigmas[steps + 1], x)
    v = torch.zeros_like(x).requires_grad_()
    moments = scheduler.moments(v, x, sigma, sigma_next, float(sigmas[1]))
    (slope,) = torch.autograd.grad(moments.mean.sum(), v)
    ours = moments.std.flatten().detach() / -slope.flatten(1)[:, 0]
    close(ours, case["outputs"]["rectification"], 0, 1e-5)


@each("cps", lambda case: 0 < case["inputs"]["eta"] <= 1)
def test_cps_equals_the_authors(case: Case) -> None:
    expected, ours = case["outputs"], replayed(CPS(CPSSpec(eta=case["inputs"]["eta"])), case)
    close(ours["mean"], expected["mean"], 1e-12 if is_float64(case) else 2e-6)
    close(ours["std"], expected["std"], 1e-12 if is_float64(case) else 2e-6)
    close(ours["logprob"], expected["log_prob"], 5e-6)
    if not is_float64(case):
        close(ours["x"], expected["next_latents"], 2e-6)


@each("cps", lambda case: case["inputs"]["eta"] > 1)
def test_cps_beyond_a_right_angle_mirrors(case: Case) -> None:
    """Past 1 the authors' formula only repeats smaller angles, so our `eta` ends there."""
    eta = case["inputs"]["eta"]
    close(replayed(CPS(CPSSpec(eta=2 - eta)), case)["x"], case["outputs"]["next_latents"], 2e-6)
    with pytest.raises(ValueError, match="at most 1"):
        CPSSpec(eta=eta)


@each("cps", lambda case: case["inputs"]["eta"] == 0)
def test_cps_without_noise_is_the_deterministic_step(case: Case) -> None:
    x, v = case["inputs"]["latents"], case["inputs"]["velocity"]
    ours = euler(v, x, batch(case["inputs"]["sigma"], x), batch(case["inputs"]["sigma_next"], x))
    close(ours, case["outputs"]["next_latents"], 2e-6)


@each("ode")
def test_ode_equals_the_authors(case: Case) -> None:
    """Flow-Factory returns zeros as log-probability; ours has none, so no ratio can be formed from it."""
    x, v = case["inputs"]["latents"], case["inputs"]["velocity"]
    scheduler = ODE(ODESpec())
    sigma, sigma_next = batch(case["inputs"]["sigma"], x), batch(case["inputs"]["sigma_next"], x)
    x_next, state = scheduler.advance(scheduler.start(), v, x, sigma, sigma_next)
    close(x_next, case["outputs"]["next_latents"], 2e-6)
    assert state is None
    assert not isinstance(scheduler, StochasticScheduler)


# --- what each scheduler claims ------------------------------------------------------------------------------------


@given(eta=st.floats(0.05, 2.0), shift=st.floats(0.5, 8.0), steps=st.integers(2, 50))
@settings(max_examples=50, deadline=None)
def test_flow_sde_adds_eta_at_the_first_step(eta: float, shift: float, steps: int) -> None:
    second = 1 - 1 / steps
    second = shift * second / (1 + (shift - 1) * second)
    x = torch.zeros(1, 4)
    moments = FlowSDE(FlowSDESpec(eta=eta)).moments_of(x, x, torch.ones(1), torch.tensor([second]), second)
    assert moments.std.item() == pytest.approx(eta, rel=1e-5)


def test_flow_sde_tames_a_schedule_that_starts_just_below_one() -> None:
    """UniPC's schedules start at 0.9998: a test for `sigma == 1` would miss that and add 31 times the noise."""
    x, second = torch.zeros(1, 4), 0.98937
    first = torch.tensor([0.9998])
    moments = FlowSDE(FlowSDESpec(eta=0.9)).moments_of(x, x, first, torch.tensor([second]), second)
    assert moments.std.item() == pytest.approx(0.9, rel=0.02)


@given(eta=st.floats(0.1, 1.5), sigma=st.floats(0.05, 0.95), fall=st.floats(0.1, 0.9))
@settings(max_examples=50, deadline=None)
def test_flow_sde_moves_its_mean_with_the_velocity(eta: float, sigma: float, fall: float) -> None:
    """`d mean / d v = -c D` with `c = 1 + eta² / 2` below 1, and `c = 1` at 1."""
    scheduler, zero = FlowSDE(FlowSDESpec(eta=eta)), torch.zeros(2, 1, dtype=torch.float64)
    levels = torch.tensor([[sigma], [1.0]], dtype=torch.float64)
    following = levels * (1 - fall)
    slope = scheduler.moments(zero + 1, zero, levels, following, 0.96).mean
    close(slope / (following - levels), torch.tensor([[1 + eta**2 / 2], [1.0]], dtype=torch.float64), 1e-12)


def test_cps_preserves_the_coefficients() -> None:
    """Data keeps `1 - sigma'`; the powers of predicted and fresh noise add up to `sigma'²`."""
    sigma, sigma_next = row(0.8), row(0.6)
    data, noise = row(1, 0), row(0, 1)
    x = (1 - sigma) * data + sigma * noise
    moments = CPS(CPSSpec(eta=0.37)).moments(noise - data, x, sigma, sigma_next, 0.9)
    assert moments.mean[0, 0].item() == pytest.approx(0.4, abs=1e-12)
    assert moments.mean[0, 1].item() ** 2 + moments.std.item() ** 2 == pytest.approx(0.36, abs=1e-12)


@every_shape
@every_stochastic
def test_vanishing_noise_is_an_euler_step(scheduler: StochasticScheduler[Any], shape: tuple[int, ...]) -> None:
    v, x = torch.randn(shape), torch.randn(shape)
    quiet = type(scheduler)(type(scheduler.spec)(eta=1e-6))
    close(quiet.moments_of(v, x, *MIXED, 0.9).mean, euler(v, x, *MIXED), 2e-6)
    assert quiet.moments_of(v, x, *MIXED, 0.9).std.max() < 1e-5


@every_shape
@pytest.mark.parametrize("scheduler", STOCHASTIC[:3], ids=lambda s: type(s).__name__)
def test_gaussian_densities(scheduler: StochasticScheduler[Any], shape: tuple[int, ...]) -> None:
    v, x, x_next = torch.randn(3, *shape).unbind()
    moments = scheduler.moments_of(v, x, *MIXED, 0.9)
    expected = Normal(moments.mean, moments.std.expand_as(x)).log_prob(x_next).flatten(1).mean(1)
    close(scheduler.logprob(v, x, x_next, *MIXED, 0.9), expected, 5e-6, 1e-5)


@every_shape
def test_cps_scores_the_squared_error(shape: tuple[int, ...]) -> None:
    """Not a density: the Gaussian's exponent without its `1 / (2 std²)`, and nothing else."""
    v, x, x_next = torch.randn(3, *shape).unbind()
    scheduler = STOCHASTIC[3]
    moments = scheduler.moments_of(v, x, *MIXED, 0.9)
    gaussian = Normal(moments.mean, moments.std.expand_as(x))
    exponent = (gaussian.log_prob(x_next) - gaussian.log_prob(moments.mean)).flatten(1).mean(1)
    close(scheduler.logprob(v, x, x_next, *MIXED, 0.9), exponent * 2 * moments.std.flatten() ** 2, 5e-6, 1e-5)


@every_shape
@every_stochastic
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_what_is_scored_is_what_is_stored(
    scheduler: StochasticScheduler[Any], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    v, x, noise = torch.randn(3, *shape).unbind()
    x = x.to(dtype)
    step = scheduler.step(v, x, *MIXED, 0.9, noise, dtype)
    assert step.x.dtype == dtype
    assert torch.equal(step.logprob, scheduler.logprob(v, x, step.x, *MIXED, 0.9))


@every_shape
@every_stochastic
def test_samples_do_not_meet(scheduler: StochasticScheduler[Any], shape: tuple[int, ...]) -> None:
    """A batch of mixed noise levels is the samples taken one by one: no `(B,)` ever broadcasts over latents."""
    v, x, noise = torch.randn(3, *shape).unbind()
    together = scheduler.step(v, x, *MIXED, 0.9, noise, torch.float32)
    assert together.logprob.shape == (3,)
    for i in range(3):
        row = slice(i, i + 1)
        alone = scheduler.step(v[row], x[row], *(s[row] for s in MIXED), 0.9, noise[row], torch.float32)
        close(together.x[row], alone.x, 1e-6)
        close(together.logprob[row], alone.logprob, 5e-6)


@every_stochastic
def test_gradients_reach_the_velocity_only(scheduler: StochasticScheduler[Any]) -> None:
    v, x, x_next = (torch.randn(3, 8, requires_grad=True) for _ in range(3))
    scheduler.logprob(v, x.detach(), x_next, *MIXED, 0.9).sum().backward()
    assert v.grad is not None
    assert v.grad.abs().min() > 0
    assert x_next.grad is None


# --- marginals on Gaussian data ------------------------------------------------------------------------------------


def variance_error(scheduler: StochasticScheduler[Any], steps: int, spread: float, below: float = 1.0) -> float:
    """The largest relative error of the sampler's variance at any level under `below`, for data `N(0.3, spread²)`.

    The exact velocity is affine in x, so mean and variance are followed in closed form; nothing is drawn.
    """
    levels = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    mean, variance, worst = 0.0, 1.0, 0.0
    for s, s_next in zip(levels[:-2].tolist(), levels[1:-1].tolist(), strict=True):
        at = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        power = (1 - s) ** 2 * spread**2 + s**2
        v = (s - (1 - s) * spread**2) / power * (at - (1 - s) * 0.3) - 0.3
        columns = torch.full((2, 1), s, dtype=torch.float64), torch.full((2, 1), s_next, dtype=torch.float64)
        moments = scheduler.moments(v, at, *columns, float(levels[1]))
        offset, slope = moments.mean[0].item(), (moments.mean[1] - moments.mean[0]).item()
        mean, variance = offset + slope * mean, slope**2 * variance + moments.std[0].item() ** 2
        exact = (1 - s_next) ** 2 * spread**2 + s_next**2
        worst = max(worst, abs(variance / exact - 1)) if s_next < below else worst
        assert mean == pytest.approx((1 - s_next) * 0.3, abs=0.1 * s_next)
    return worst


@pytest.mark.parametrize("scheduler", STOCHASTIC[:3], ids=lambda s: type(s).__name__)
def test_sdes_keep_the_marginals_as_steps_shrink(scheduler: StochasticScheduler[Any]) -> None:
    """In the lower half: Flow-SDE's first step adds `eta` however small it is, which takes a while to be forgotten."""
    coarse, fine = variance_error(scheduler, 200, 0.6, 0.5), variance_error(scheduler, 800, 0.6, 0.5)
    assert fine < 0.01
    assert fine < coarse / 2


def test_cps_keeps_the_marginals_of_certain_data_at_any_step_size() -> None:
    """Where the data estimate is exact, so is the noise estimate, and replacing part of it changes nothing."""
    assert variance_error(STOCHASTIC[3], 5, 0.0) < 1e-12


def test_flow_sde_leaves_more_noise_than_cps() -> None:
    """The claim of FlowCPS: at few steps the SDE overshoots the noise level of its schedule, CPS does not."""
    assert variance_error(STOCHASTIC[0], 10, 0.0) > 0.05


def test_levels_of_the_goldens_are_a_shifted_grid() -> None:
    assert GRID[1].item() == pytest.approx(0.9642857, abs=1e-7)
    assert math.isclose(GRID[-2].item(), 0.25, abs_tol=1e-7)
