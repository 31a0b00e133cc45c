"""GRPO-Guard's ratio, loss and gradients."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import pytest
import torch
from flowfactory.builtin import FlowSDESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Batch
from flowfactory.losses.transition import Transition
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory_plugin_grpo import GRPOGuardSpec
from flowfactory_plugin_grpo.guard import GRPOGuard
from support import GRID, STORAGE, Case, FieldPolicy, close, each, transition
from torch import Tensor

NO_DRAWS = Draws([])
SCHEDULER = FlowSDE(FlowSDESpec(eta=0.7))


def golden_loss(case: Case, v: Tensor, **keys: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy loss and metrics of a golden step, old predictions made by its old velocity."""
    given = case["inputs"]
    low, high = given["clip_range"]
    trainer = GRPOGuard(GRPOGuardSpec(clip_low=-low, clip_high=high, old="replayed", **keys))
    sigmas = [1.0, given["sigma_max"], given["sigma"], given["sigma_next"]]
    zeros = torch.zeros(len(given["latents"]))
    batch = transition(SCHEDULER, sigmas, given["latents"], given["next_latents"], zeros, given["advantages"])
    policy = FieldPolicy(given["velocity_old"])
    (term,) = trainer.terms(policy, batch, NO_DRAWS)
    assert term.old is not None
    close(term.old.mean, given["mean_old"], 2e-6)
    policy.fields["current"] = v
    loss = trainer.loss(policy, batch, term)
    return loss.parts["policy"], dict(loss.metrics)


def sampled(dtype: torch.dtype = torch.float32, on_policy: bool = True, samples: int = 4) -> tuple[FieldPolicy, Batch]:
    policy = FieldPolicy(lambda x, sigma: (0.3 * x.float()).to(dtype))
    generator = torch.Generator().manual_seed(1)
    start, noise = torch.randn(samples, 6, 5, generator=generator), torch.randn(samples, 3, 6, 5, generator=generator)
    trajectory = rollout(policy, SCHEDULER, GRID, (0, 3, 8), Noise(start, noise), {}, dtype)
    return policy, Batch(trajectory, {}, torch.linspace(-1, 2, samples).double(), on_policy, SCHEDULER)


# --- goldens -------------------------------------------------------------------------------------------------------


@each("grpo_guard")
def test_loss_equals_the_authors(case: Case) -> None:
    expected, v = case["outputs"], case["inputs"]["velocity"].requires_grad_()
    loss, metrics = golden_loss(case, v)
    close(metrics["ratio"], expected["ratio"].mean(), 1e-6)
    close(metrics["ratio_deviation"], (expected["ratio"] - 1).abs().max(), 1e-6)
    close(loss, expected["policy_loss_official"], 0, 1e-5)
    close(torch.autograd.grad(loss, v)[0], expected["grad_official_wrt_velocity"], 1e-7, 1e-4)


@each("grpo_guard")
def test_without_reweighting_it_is_flow_factorys(case: Case) -> None:
    """Flow-Factory's ratio has shape (B, 1, 1, B); where all samples share the step, its rows are all the same."""
    expected, v = case["outputs"], case["inputs"]["velocity"].requires_grad_()
    loss, metrics = golden_loss(case, v, reweight=False)
    assert expected["flow_factory"]["ratio_shape"] == [3, 1, 1, 3]
    close(metrics["ratio"], expected["flow_factory"]["ratio"].mean(), 1e-6)
    close(loss, expected["flow_factory"]["policy_loss"], 0, 1e-5)
    close(loss, expected["policy_loss_before_reweight"], 0, 1e-5)
    close(torch.autograd.grad(loss, v)[0], expected["flow_factory"]["grad_wrt_velocity"], 1e-7, 1e-4)


@each("grpo_guard", lambda case: "big" in case["name"])
def test_the_authors_line_as_written_mixes_samples(case: Case) -> None:
    """A flaw of theirs: the squared shift is averaged over the batch too, one bias for all. Ours is per sample."""
    literal = case["outputs"]["official_literal_reduction"]
    assert literal["bias_shape"] == []
    _, metrics = golden_loss(case, case["inputs"]["velocity"])
    assert abs(metrics["ratio_deviation"] - (literal["ratio"] - 1).abs().max()) > 1e-6


# --- what the ratio is ---------------------------------------------------------------------------------------------


def test_ratio_is_noise_times_shift() -> None:
    """The closed form against its definition: log-ratio, unbiased, times the step's standard deviation."""
    policy, batch = sampled(on_policy=False)
    trainer = GRPOGuard(GRPOGuardSpec())
    moved = FieldPolicy(lambda x, sigma: 0.33 * x)
    for term in trainer.terms(policy, batch, NO_DRAWS):
        at = Transition.of(batch, term.step)
        shift = (at.moments(0.33 * at.x).mean - at.moments(0.3 * at.x).mean).flatten(1)
        bias = (shift**2).mean(1) / (2 * at.std() ** 2)
        expected = (at.std() * (at.score(0.33 * at.x) - at.logprob + bias)).exp()
        metrics = trainer.loss(moved, batch, term).metrics
        close(metrics["ratio"], expected.mean(), 1e-6)
        close(metrics["ratio_deviation"], (expected - 1).abs().max(), 1e-6)


def test_ratio_is_centred_and_the_plain_one_is_not() -> None:
    policy, batch = sampled(on_policy=False, samples=4000)
    trainer = GRPOGuard(GRPOGuardSpec())
    moved = FieldPolicy(lambda x, sigma: 1.5 * x)
    (_, term, _) = trainer.terms(policy, batch, NO_DRAWS)
    at = Transition.of(batch, term.step)
    plain = (at.score(1.5 * at.x) - at.logprob) * at.std()
    assert plain.mean() < -0.005
    assert abs(trainer.loss(moved, batch, term).metrics["ratio"] - 1) < 0.002


@pytest.mark.parametrize("old", ["sampled", "replayed"])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_replay_has_ratio_exactly_one(dtype: torch.dtype, on_policy: bool, old: Literal["sampled", "replayed"]) -> None:
    policy, batch = sampled(dtype, on_policy)
    trainer = GRPOGuard(GRPOGuardSpec(old=old))
    for term in trainer.terms(policy, batch, NO_DRAWS):
        assert (term.old is None) == (on_policy or old == "sampled")
        assert trainer.loss(policy, batch, term).metrics["ratio_deviation"] == 0


def test_old_means_are_one_whoever_knows_them() -> None:
    """Kept from sampling, replayed, or the current ones, detached, they give the same gradient; a replay is a pass."""
    gradients = []
    for on_policy, old, forwards in ((True, "sampled", 0), (False, "replayed", 3), (False, "sampled", 0)):
        policy, batch = sampled(on_policy=on_policy)
        before, trainer = len(policy.calls), GRPOGuard(GRPOGuardSpec(old=old))  # type: ignore[arg-type]
        terms = trainer.terms(policy, batch, NO_DRAWS)
        assert len(policy.calls) - before == forwards
        weight = torch.tensor(0.3, requires_grad=True)
        learner = FieldPolicy(lambda x, sigma, weight=weight: weight * x)
        losses = [trainer.loss(learner, batch, term).parts["policy"] for term in terms]
        gradients.append(torch.autograd.grad(torch.stack(losses).sum(), weight)[0])
    close(gradients[0], gradients[1], 1e-6, 1e-5)
    assert gradients[1] == gradients[2]
    assert gradients[0] != 0


def test_a_later_update_without_the_means_says_who_has_to_ask_for_them() -> None:
    policy, batch = sampled(on_policy=False)
    batch, trainer = attrs.evolve(batch, rollout=attrs.evolve(batch.rollout, means={})), GRPOGuard(GRPOGuardSpec())
    with pytest.raises(ValueError, match="Needs have to say old='means'"):
        trainer.loss(policy, batch, trainer.terms(policy, batch, NO_DRAWS)[0])


def test_reweighting_makes_gradients_alike_at_every_step() -> None:
    """The gradient by the velocity is `A c z / n`, with `c = 1 + eta² / 2` below sigma 1: no step size in it."""
    policy, batch = sampled()
    trainer = GRPOGuard(GRPOGuardSpec())
    for term in trainer.terms(policy, batch, NO_DRAWS)[1:]:
        at = Transition.of(batch, term.step)
        v = (0.3 * at.x).requires_grad_()
        loss = trainer.loss(FieldPolicy(v), batch, term).parts["policy"]
        z = (at.x_next - at.moments(v).mean) / at.moments(v).std
        expected = batch.advantages.float()[:, None, None] * (1 + 0.7**2 / 2) * z / z.numel()
        close(torch.autograd.grad(loss, v)[0], expected, 1e-7, 1e-4)


def test_divergence_has_its_part() -> None:
    policy, batch = sampled()
    policy.fields["reference"] = lambda x, sigma: 0.2 * x
    trainer = GRPOGuard(GRPOGuardSpec(kl_beta=0.5, kl="v"))
    term = trainer.terms(policy, batch, NO_DRAWS)[0]
    close(trainer.loss(policy, batch, term).parts["kl"], 0.5 * 0.01 * (batch.rollout.latents[0] ** 2).mean(), 1e-6)


def test_needs_a_density() -> None:
    assert GRPOGuardSpec().needs.density == "gaussian"
    assert [GRPOGuardSpec(old=old).needs.old for old in ("sampled", "replayed")] == ["means", "replayed"]
