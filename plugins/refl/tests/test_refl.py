"""ReFL and DRaFT-K against numbers transcribed from UniRL and ImageReward, and against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from flowfactory.builtin import FlowSDESpec, ODESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Batch, Loss, Row
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.schedulers.ode import ODE
from flowfactory.testing.mean import TARGET
from flowfactory.testing.problem import SAMPLES, STEPS, Problem
from flowfactory_plugin_refl import DraftSpec, ReFLSpec
from flowfactory_plugin_refl.draft import Draft, sampled
from flowfactory_plugin_refl.refl import ReFL, at
from support import GRID, Case, FieldPolicy, close, each
from torch import Tensor

NO_DRAWS = Draws([])


class Rewarded(FieldPolicy):
    """A field whose latents are its media, and the reward of these."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor], rewarded: Callable[[Tensor], Tensor]) -> None:
        super().__init__(field)
        self.rewarded = rewarded

    def decode(self, x: Tensor) -> Tensor:
        return x

    def reward(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        return self.rewarded(media)


def toy(case: Case, parameters: Tensor) -> Rewarded:
    """The golden's field `p0 tanh(p1 x) + p2 s x`, and its reward `2.2 - 1.5 mean (x - 0.3)² + offset`."""

    def field(x: Tensor, sigma: Tensor) -> Tensor:
        return parameters[0] * torch.tanh(parameters[1] * x) + parameters[2] * sigma.view(-1, *[1] * (x.dim() - 1)) * x

    offset = case["inputs"].get("reward_offset", 0.0)
    return Rewarded(field, lambda x: 2.2 - 1.5 * (x - 0.3).square().flatten(1).mean(1) + offset)


def states(policy: FieldPolicy, start: Tensor, sigmas: Tensor) -> Batch:
    """A deterministic rollout, every state of which is kept."""
    scheduler, start = ODE(ODESpec()), start.float()
    noise = Noise(start, torch.empty(len(start), 0))
    made = rollout(policy, scheduler, sigmas.float(), (), noise, {}, torch.float32, "states")
    return Batch(made, {}, torch.zeros(len(start)).double(), True, scheduler)


def gradient(loss: Loss, of: Tensor) -> Tensor:
    return torch.autograd.grad(sum(loss.parts.values()), of, retain_graph=True)[0]  # type: ignore[arg-type]


@each("reward_gradient", lambda case: "gradient_steps" in case["inputs"])
def test_draft_equals_unirl(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    p = given["parameters"].clone().requires_grad_()
    policy, total = toy(case, p), len(given["sigmas"]) - 1
    batch, trainer = (
        states(policy, given["start"], given["sigmas"]),
        Draft(DraftSpec(steps=given["gradient_steps"] or total)),
    )
    (first,) = trainer.terms(policy, batch, NO_DRAWS)
    x0 = sampled(policy, batch, first)
    close(x0, expected["final"], 2e-6)
    close(batch.rollout.final, expected["final"], 2e-6)
    close(policy.reward(x0, ()), expected["rewards"], 1e-6, 1e-5)
    loss = trainer.loss(policy, batch, first)
    close(loss.parts["reward"], expected["loss"], 1e-7, 1e-5)
    close(gradient(loss, p), expected["grad_parameters"], 1e-7, 1e-4)


@each("reward_gradient", lambda case: "gradient_step" in case["inputs"])
def test_refl_equals_the_authors_at_the_right_noise_level(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    p = given["parameters"].clone().requires_grad_()
    policy, spec = toy(case, p), ReFLSpec(threshold=given["threshold"], scale=given["grad_scale"])
    batch = states(policy, given["start"], given["sigmas"])
    state = at(batch, torch.full((len(given["start"]),), given["gradient_step"]))
    close(state.x, expected["latents"], 2e-6)
    loss = ReFL(spec).loss(policy, batch, state)
    close(loss.parts["reward"], expected["loss"], 1e-9, 1e-5)
    close(loss.metrics["reward"], expected["rewards"].mean(), 1e-6, 1e-5)
    close(loss.metrics["saturated"], (expected["rewards"] >= given["threshold"]).float().mean(), 0)
    close(gradient(loss, p), expected["grad_parameters"], 1e-7, 1e-4)


# --- on the exact Gaussian -----------------------------------------------------------------------------------------


def batch_of(problem: Problem) -> Batch:
    return problem.batch(problem.sample(SAMPLES), problem.judged(SAMPLES))


def difference(problem: Problem, measured: Callable[[], Tensor], step: float = 1e-2) -> Tensor:
    """The derivative of a number with respect to the mean `(4,)`, by central differences."""
    (mean,), found = problem.policy.parameters, []
    for i in range(len(mean)):
        two = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                mean[i] += sign * step
                two.append(measured().double())
                mean[i] -= sign * step
        found.append((two[0] - two[1]) / (2 * step))
    return torch.stack(found)


TRAINERS = [
    *(Draft(DraftSpec(steps=k)) for k in (1, 2, STEPS)),
    ReFL(ReFLSpec(scale=1.0)),
    ReFL(ReFLSpec(scale=1.0, fraction=1.0)),
]


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda trainer: str(trainer.spec))
def test_the_gradient_is_that_of_finite_differences(trainer: Any) -> None:
    problem = Problem(trainer)
    problem.nudge(0.3)
    batch = batch_of(problem)
    terms = problem.terms(batch, SAMPLES)
    exact = problem.gradient(problem.total(problem.losses(batch, terms)))
    close(exact, difference(problem, lambda: problem.total(problem.losses(batch, terms))), 1e-4, 1e-3)
    assert float(exact.norm()) > 1e-2


def test_through_all_steps_it_is_the_gradient_of_what_is_sampled() -> None:
    """By sampling anew with other means: nothing of the trainer's own sampler is in the comparison."""
    problem = Problem(Draft(DraftSpec(steps=1000)))
    problem.nudge(0.3)
    batch, made = batch_of(problem), problem.sample(SAMPLES)
    exact = problem.gradient(problem.total(problem.losses(batch, problem.terms(batch, SAMPLES))))

    def reached() -> Tensor:
        rolled, _ = problem.roll(SAMPLES, 0, made.conditions)
        return ((rolled.final - TARGET) ** 2).mean()

    close(exact, difference(problem, reached), 1e-4, 1e-3)


def test_draft_of_one_step_is_refl_without_a_threshold_at_the_last() -> None:
    problem = Problem(Draft(DraftSpec(steps=1)))
    batch = batch_of(problem)
    draft = problem.gradient(problem.total(problem.losses(batch, [STEPS - 1])))
    state = at(batch, torch.full((len(SAMPLES),), STEPS - 1))
    refl = ReFL(ReFLSpec(scale=1.0, threshold=100.0)).loss(problem.policy, batch, state)
    close(problem.gradient(refl.parts["reward"]), draft, 1e-6, 1e-5)


# --- what they ask for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "fraction", "steps"), [(40, 0.25, 10), (10, 0.25, 3), (10, 0.3, 3), (4, 0.1, 1), (6, 1.0, 6)]
)
def test_late_steps(total: int, fraction: float, steps: int) -> None:
    assert ReFLSpec(fraction=fraction).learned(total) == range(total - steps, total)


@pytest.mark.parametrize(("total", "wanted", "first"), [(10, 1, 9), (10, 3, 7), (4, 9, 0)])
def test_last_steps(total: int, wanted: int, first: int) -> None:
    assert DraftSpec(steps=wanted).learned(total) == range(first, total)


def test_each_sample_draws_its_own_late_step() -> None:
    """Of ten steps the last quarter, rounded up: 7, 8 and 9; each state is the one the rollout had there."""
    n = 200
    batch = states(FieldPolicy(lambda x, sigma: 0.3 * x), torch.randn(n, 3, 4), GRID)
    (state,) = ReFL(ReFLSpec()).terms(FieldPolicy(torch.zeros(1)), batch, Draws([(0, "late", i) for i in range(n)]))
    steps = [(batch.rollout.sigmas == level).nonzero().item() for level in state.sigma]
    assert set(steps) == {7, 8, 9}
    assert min(steps.count(step) for step in (7, 8, 9)) > n / 5
    assert all(torch.equal(state.x[i], batch.rollout.latents[int(step)][i]) for i, step in enumerate(steps))


def test_a_sample_above_the_threshold_teaches_nothing() -> None:
    w = torch.tensor(0.3, requires_grad=True)
    policy = Rewarded(lambda x, sigma: w * x, lambda x: x.flatten(1).mean(1))
    batch = states(policy, torch.stack([torch.full((3,), -1.0), torch.full((3,), 1.0)]), GRID)
    state = at(batch, torch.tensor([9, 9]))
    loss = ReFL(ReFLSpec(threshold=0.0, scale=2.0)).loss(policy, batch, state)
    assert float(loss.metrics["saturated"]) == 0.5
    # Of the other: L = 2 / 2 * -(x - sigma w x), and x is negative.
    close(gradient(loss, w), (state.sigma[0] * state.x[0]).mean(), 1e-6)


def test_after_noise_the_steps_with_a_gradient_are_deterministic() -> None:
    """Whatever the sampler draws before them; the last step never has noise, so that one is as it was sampled."""
    field = FieldPolicy(lambda x, sigma: 0.3 * x)
    scheduler = FlowSDE(FlowSDESpec())
    noise = Noise(torch.randn(4, 3), torch.randn(4, 2, 3))
    made = rollout(field, scheduler, GRID, (2, 8), noise, {}, torch.float32, "states")
    batch = Batch(made, {}, torch.zeros(4).double(), True, scheduler)
    assert torch.equal(sampled(field, batch, 9), made.final)
    assert not torch.allclose(sampled(field, batch, 8), made.final)


def test_needs() -> None:
    for spec, reach in ((DraftSpec(steps=3), 3), (ReFLSpec(), 1)):
        needs = spec.needs
        assert (needs.gradient, needs.scores, needs.trajectory, needs.density) == (reach, False, "states", "none")
