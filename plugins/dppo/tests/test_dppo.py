"""Flow-DPPO's loss against the numbers of the paper's authors and of verl-omni, and what its mask does."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import pytest
import torch
from flowfactory.builtin import DanceSDESpec, FlowSDESpec
from flowfactory.contracts.scheduler import StochasticScheduler
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Batch
from flowfactory.losses.transition import Transition
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.dance_sde import DanceSDE
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory_plugin_dppo import DPPOSpec
from flowfactory_plugin_dppo.dppo import DPPO, Term, masked
from support import GRID, STORAGE, Case, FieldPolicy, close, each, transition
from torch import Tensor

NO_DRAWS = Draws([])
SCHEDULERS = [FlowSDE(FlowSDESpec()), DanceSDE(DanceSDESpec())]


def batch_of(case: Case) -> Batch:
    """The stored step of a case; its float64 ones as float32, which is what we compute in."""
    given = {name: x.float() if isinstance(x, Tensor) else x for name, x in case["inputs"].items()}
    top = given["sigma_max"]
    first = [] if given["sigma"] == top else [1.0] if given["sigma"] == 1 else [1.0, top]
    levels = [*first, *([] if given["sigma"] == 1 else [given["sigma"]]), given["sigma_next"]]
    scheduler = FlowSDE(FlowSDESpec(eta=given["eta"]))
    old = case["outputs"]["old_log_prob"].float()
    return transition(scheduler, levels, given["latents"], given["next_latents"], old, given["advantages"])


@each("flow_dppo", lambda case: case["inputs"]["divide_by_variance"])
def test_loss_equals_the_authors(case: Case) -> None:
    given, expected, batch = case["inputs"], case["outputs"], batch_of(case)
    v = given["velocity"].float().clone().requires_grad_()
    trainer = DPPO(DPPOSpec(delta=given["threshold"], old="replayed"))
    (term,) = trainer.terms(FieldPolicy(given["velocity_old"].float()), batch, NO_DRAWS)
    assert term.old is not None
    close(term.old.mean, expected["mean_old"], 2e-6)
    at = Transition.of(batch, term.step)
    close(at.std(), torch.full((4,), expected["std"]), 1e-6)
    close(at.score(v), expected["log_prob"], 5e-6)
    loss = trainer.loss(FieldPolicy(v), batch, term)
    A, dropped = given["advantages"], expected["dropped"].float()
    close(loss.metrics["dropped_above"], (dropped * (A > 0)).mean(), 1e-7)
    close(loss.metrics["dropped_below"], (dropped * (A < 0)).mean(), 1e-7)
    close(loss.metrics["ratio"], expected["ratio"].mean(), 5e-6)
    close(loss.metrics["divergence"], expected["divergence"].mean(), 1e-12, 1e-4)
    # The ratio is exp of a difference of float32 log-probabilities, ours rounded otherwise than theirs.
    close(loss.parts["policy"], expected["loss"], 5e-6, 1e-5)
    (gradient,) = torch.autograd.grad(loss.parts["policy"], v)
    close(gradient, expected["grad_wrt_velocity"], 1e-7, 1e-4)


@each("flow_dppo", lambda case: not case["inputs"]["divide_by_variance"])
def test_the_undivided_divergence_is_another_quantity(case: Case) -> None:
    """Both codes can leave `S²` out, with another threshold; we do not offer it, and what is left agrees."""
    expected, batch = case["outputs"], batch_of(case)
    at = Transition.of(batch, batch.rollout.steps[0])
    ours = at.moments(case["inputs"]["velocity"]).mean - at.moments(case["inputs"]["velocity_old"]).mean
    close(ours.square().flatten(1).mean(1) / 2, expected["divergence"], 1e-12, 1e-3)


# --- what the loss does --------------------------------------------------------------------------------------------


def taken(scheduler: StochasticScheduler[Any], n: int = 4, on_policy: bool = False) -> tuple[Batch, Tensor]:
    """Two stochastic steps of a rollout by `0.3 x`, and advantages of both signs."""
    noise = Noise(torch.randn(n, 3, 4), torch.randn(n, 2, 3, 4))
    field = FieldPolicy(lambda x, sigma: 0.3 * x)
    made = rollout(field, scheduler, GRID, (1, 2), noise, {}, torch.float32, "steps")
    A = torch.linspace(-1.5, 1.5, n).double()
    return Batch(made, {}, A, on_policy, scheduler), A


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("old", ["sampled", "replayed"])
def test_on_policy_nothing_is_dropped_and_the_gradient_is_the_plain_one(
    scheduler: Any, on_policy: bool, old: Literal["sampled", "replayed"]
) -> None:
    """Which is Flow-GRPO's there: `-A d ln p`."""
    batch, A = taken(scheduler, on_policy=on_policy)
    w, trainer = torch.tensor(0.3, requires_grad=True), DPPO(DPPOSpec(old=old))
    policy = FieldPolicy(lambda x, sigma: w * x)
    terms = trainer.terms(FieldPolicy(lambda x, sigma: 0.3 * x), batch, NO_DRAWS)
    for term in terms:
        loss = trainer.loss(policy, batch, term)
        for name, value in {"ratio": 1.0, "ratio_deviation": 0, "divergence": 0, "dropped_above": 0}.items():
            assert float(loss.metrics[name]) == value
        (ours,) = torch.autograd.grad(loss.parts["policy"], w)
        at = Transition.of(batch, term.step)
        (plain,) = torch.autograd.grad(-(A * at.score(at.velocity(policy, batch))).mean(), w)
        close(ours, plain, 1e-9, 1e-5)
        assert abs(float(plain)) > 0
        assert (term.old is None) == (on_policy or old == "sampled")


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_the_mask_is_the_definition(scheduler: Any) -> None:
    """By hand: dropped is who is far off and would go further; they count in the mean, with no gradient."""
    batch, A = taken(scheduler, n=12)
    trainer, moved = DPPO(DPPOSpec(delta=0.0)), 0.35
    w = torch.tensor(moved, requires_grad=True)
    seen = {"dropped_above": 0.0, "dropped_below": 0.0}
    for term in trainer.terms(FieldPolicy(lambda x, sigma: 0.3 * x), batch, NO_DRAWS):
        at = Transition.of(batch, term.step)
        ratio = (at.score(moved * at.x) - at.logprob).exp()
        above, below = (ratio > 1) & (A > 0), (ratio < 1) & (A < 0)
        loss = trainer.loss(FieldPolicy(lambda x, sigma: w * x), batch, term)
        close(loss.metrics["dropped_above"], above.double().mean(), 1e-7)
        close(loss.metrics["dropped_below"], below.double().mean(), 1e-7)
        kept = ~(above | below)
        close(loss.parts["policy"], -(A * ratio)[kept].sum() / 12, 1e-6)
        (ours,) = torch.autograd.grad(loss.parts["policy"], w)
        (plain,) = torch.autograd.grad(-(A * (at.score(w * at.x) - at.logprob).exp())[kept].sum() / 12, w)
        close(ours, plain, 1e-7, 1e-4)
        seen = {name: seen[name] + float(loss.metrics[name]) for name in seen}
    assert min(seen.values()) > 0


def test_the_threshold_drops_from_itself_on() -> None:
    batch, _ = taken(SCHEDULERS[0], n=12)
    (term, _) = DPPO(DPPOSpec()).terms(FieldPolicy(lambda x, sigma: 0.3 * x), batch, NO_DRAWS)
    one = attrs.evolve(batch, rollout=batch.rollout[:1], advantages=torch.ones(1).double())
    first, policy = Term(term.step, None), FieldPolicy(lambda x, sigma: 0.35 * x)
    for sign in (1.0, -1.0):
        signed = attrs.evolve(one, advantages=sign * one.advantages)
        exact = float(DPPO(DPPOSpec()).loss(policy, signed, first).metrics["divergence"])
        for delta, dropped in ((exact, True), (exact * 1.001, False)):
            found = DPPO(DPPOSpec(delta=delta)).loss(policy, signed, first)
            outward = float(found.metrics["ratio"]) > 1 if sign > 0 else float(found.metrics["ratio"]) < 1
            both = float(found.metrics["dropped_above"] + found.metrics["dropped_below"])
            assert both == (outward and dropped)


def test_dropped_ratios_may_be_infinite() -> None:
    log_ratio = torch.tensor([1000.0, 0.5], requires_grad=True)
    loss = masked(log_ratio, torch.tensor([2.0, 2.0]), torch.tensor([True, False])).mean()
    close(loss, -torch.tensor(0.5).exp(), 1e-6)
    close(torch.autograd.grad(loss, log_ratio)[0], torch.tensor([0.0, -1.6487213]), 1e-5)


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_first_ratios_are_one_whatever_the_storage(dtype: torch.dtype) -> None:
    noise = Noise(torch.randn(4, 3, 4), torch.randn(4, 2, 3, 4))
    field = FieldPolicy(lambda x, sigma: 0.3 * x.float())
    made = rollout(field, SCHEDULERS[0], GRID, (1, 2), noise, {}, dtype, "steps")
    batch = Batch(made, {}, torch.ones(4).double(), True, SCHEDULERS[0])
    for term in DPPO(DPPOSpec()).terms(field, batch, NO_DRAWS):
        assert float(DPPO(DPPOSpec()).loss(field, batch, term).metrics["ratio_deviation"]) == 0


def test_needs() -> None:
    needs = DPPOSpec().needs
    assert (needs.trajectory, needs.density, needs.rollout) == ("steps", "gaussian", "current")
    assert not needs.reference
