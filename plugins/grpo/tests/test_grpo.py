"""Flow-GRPO's loss against the authors' numbers, gradients included, and what must hold of any policy gradient."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
import torch
from clipped import golden_batch, golden_keys
from flowfactory.builtin import CPSSpec, DanceSDESpec, FlowSDESpec, LinearSDESpec
from flowfactory.contracts.scheduler import StochasticScheduler
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Batch
from flowfactory.losses.clipping import ClippedTerm, clipped
from flowfactory.losses.transition import Transition
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.cps import CPS
from flowfactory.schedulers.dance_sde import DanceSDE
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.schedulers.linear_sde import LinearSDE
from flowfactory_plugin_grpo import GRPOSpec
from flowfactory_plugin_grpo.grpo import GRPO, levelled
from support import GRID, STORAGE, Case, FieldPolicy, close, each, transition
from torch import Tensor

NO_DRAWS = Draws([])


def golden_spec(case: Case, **keys: Any) -> GRPOSpec:
    return GRPOSpec(**golden_keys(case), **keys)


def one_loss(spec: GRPOSpec, policy: FieldPolicy, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    trainer = GRPO(spec)
    with torch.no_grad():
        (term,) = trainer.terms(policy, batch, NO_DRAWS)
    loss = trainer.loss(policy, batch, term)
    return dict(loss.parts), dict(loss.metrics)


def by_name(scheduler: str, eta: float) -> StochasticScheduler[Any]:
    if scheduler == "cps":
        return CPS(CPSSpec(eta=eta))
    if scheduler == "linear-sde":
        return LinearSDE(LinearSDESpec(eta=eta))
    return FlowSDE(FlowSDESpec(eta=eta)) if scheduler == "flow-sde" else DanceSDE(DanceSDESpec(eta=eta))


def sampled(
    policy: FieldPolicy,
    scheduler: str = "flow-sde",
    shape: tuple[int, ...] = (4, 6, 5),
    dtype: torch.dtype = torch.float32,
    steps: tuple[int, ...] = (0, 3, 8),
    on_policy: bool = True,
) -> Batch:
    """A batch that `policy` itself has sampled."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    noise = Noise(start, torch.randn(shape[0], len(steps), *shape[1:], generator=generator))
    sampler = by_name(scheduler, 0.6)
    trajectory = rollout(policy, sampler, GRID, steps, noise, {}, dtype)
    return Batch(trajectory, {}, torch.tensor([1.3, -0.8, 7.5, -0.2]).double(), on_policy, sampler)


# --- goldens -------------------------------------------------------------------------------------------------------


@each("grpo_loss")
def test_policy_loss_equals_flow_grpo(case: Case) -> None:
    expected, v = case["outputs"], case["inputs"]["velocity"].requires_grad_()
    parts, metrics = one_loss(golden_spec(case), FieldPolicy(v), golden_batch(case))
    assert set(parts) == {"policy"}
    close(parts["policy"], expected["policy_loss"], 0, 1e-5)
    close(metrics["ratio"], expected["ratio"].mean(), 1e-6)
    close(metrics["ratio_deviation"], (expected["ratio"] - 1).abs().max(), 1e-6)
    close(metrics["approx_kl"], expected["approx_kl"], 1e-9, 2e-3)
    assert not case["near_clip_boundary"]
    close(metrics["clip_fraction"], expected["clip_frac_high"] + expected["clip_frac_low"], 1e-6)
    (gradient,) = torch.autograd.grad(parts["policy"], v)
    close(gradient, expected["grad_policy_wrt_velocity"], 1e-7, 1e-4)


@each("grpo_loss")
def test_divergences(case: Case) -> None:
    """Flow-GRPO's code since 2025-07 leaves `D` out of the denominator; the paper, and ours, has it: exact * D."""
    given, expected, batch = case["inputs"], case["outputs"], golden_batch(case)
    fall = given["sigma"] - given["sigma_next"]
    values = {}
    for kind in ("exact", "x", "v"):
        v = given["velocity"].clone().requires_grad_()
        policy = FieldPolicy(v, reference=given["velocity_ref"])
        parts, metrics = one_loss(golden_spec(case, kl_beta=0.5, kl=kind), policy, batch)
        close(parts["kl"], 0.5 * metrics["kl"], 0, 1e-6)
        values[kind] = metrics["kl"]
        (gradient,) = torch.autograd.grad(parts["kl"], v)
        assert gradient.abs().min() > 0
    close(values["exact"], torch.tensor(expected["kl_paper_exact"]), 1e-9, 1e-4)
    close(values["exact"] * fall, expected["kl_flow_grpo"], 1e-10, 1e-4)
    close(values["x"], expected["kl_flow_factory_x_based"], 1e-10, 1e-4)
    close(values["v"], expected["kl_flow_factory_v_based"], 1e-10, 1e-4)


@each("grpo_loss")
def test_gradient_with_flow_grpos_divergence(case: Case) -> None:
    """Its coefficient is ours times `D`."""
    given, v = case["inputs"], case["inputs"]["velocity"].clone().requires_grad_()
    beta = given["kl_beta"] * (given["sigma"] - given["sigma_next"])
    policy = FieldPolicy(v, reference=given["velocity_ref"])
    parts, _ = one_loss(golden_spec(case, kl_beta=beta), policy, golden_batch(case))
    loss = parts["policy"] + parts["kl"]
    close(loss, case["outputs"]["loss_with_kl"], 0, 1e-5)
    close(torch.autograd.grad(loss, v)[0], case["outputs"]["grad_with_kl_wrt_velocity"], 1e-7, 1e-4)


@each("tempflow_weight")
def test_noise_weight_equals_tempflow(case: Case) -> None:
    given = case["inputs"]
    x = torch.zeros(len(given["ratio"]), 2)
    sigmas = [1.0, given["sigma_max"], given["sigma"], given["sigma_next"]]
    batch = transition(FlowSDE(FlowSDESpec(eta=given["eta"])), sigmas, x, x, x[:, 0], given["advantages"])
    weight = 2.25 * Transition.of(batch, 2).std()
    close(weight, torch.tensor(case["outputs"]["weight"]).expand(len(x)), 2e-6)
    loss = (weight * clipped(given["ratio"], batch.advantages, golden_spec(case))).mean()
    close(loss, case["outputs"]["policy_loss"], 0, 1e-5)


def test_noise_weight_is_per_sample_and_per_step() -> None:
    """TempFlow-GRPO's own code lets `(B, 1, 1, 1)` meet `(B,)`; here each step's loss is scaled by its own noise."""
    policy = FieldPolicy(lambda x, sigma: 0.3 * x)
    batch = sampled(policy)
    plain, weighted = GRPO(GRPOSpec()), GRPO(GRPOSpec(noise_weight=2.25))
    for term in plain.terms(policy, batch, NO_DRAWS):
        std = Transition.of(batch, term.step).std()
        assert std.shape == (4,)
        a, b = (t.loss(policy, batch, term).parts["policy"] for t in (plain, weighted))
        close(b, 2.25 * std[0] * a, 1e-7, 1e-6)


# --- policy gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 3, 4, 4), (4, 3, 2, 4, 4)], ids=lambda s: f"rank{len(s)}")
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("scheduler", ["flow-sde", "dance-sde", "linear-sde", "cps"])
def test_replay_has_ratio_exactly_one(scheduler: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    policy = FieldPolicy(lambda x, sigma: (0.3 * x.float() + 0.1).to(dtype))
    batch, trainer = sampled(policy, scheduler, shape, dtype), GRPO(GRPOSpec())
    terms = trainer.terms(policy, batch, NO_DRAWS)
    assert [term.step for term in terms] == [0, 3, 8]
    for term in terms:
        metrics = trainer.loss(policy, batch, term).metrics
        assert metrics["ratio_deviation"] == 0
        assert metrics["clip_fraction"] == 0


@pytest.mark.parametrize("scheduler", ["flow-sde", "dance-sde", "linear-sde", "cps"])
def test_the_first_update_is_the_plain_policy_gradient(scheduler: str) -> None:
    """At ratio 1 nothing is clipped, and the gradient is that of `-A log p`."""
    weight = torch.tensor(0.3, requires_grad=True)
    policy = FieldPolicy(lambda x, sigma: weight * x)
    batch, trainer = sampled(policy, scheduler), GRPO(GRPOSpec())
    for term in trainer.terms(policy, batch, NO_DRAWS):
        (ours,) = torch.autograd.grad(trainer.loss(policy, batch, term).parts["policy"], weight)
        at = Transition.of(batch, term.step)
        plain = -(batch.advantages.clamp(-5, 5) * at.score(weight * at.x)).mean()
        (expected,) = torch.autograd.grad(plain, weight)
        close(ours, expected, 1e-7, 1e-5)
        assert ours != 0


def test_log_ratio_is_noise_times_shift() -> None:
    """`ln rho = mean(z dmu / S - dmu² / (2 S²))` for a Gaussian step."""
    policy = FieldPolicy(lambda x, sigma: 0.3 * x)
    batch = sampled(policy)
    for step in batch.rollout.steps:
        at = Transition.of(batch, step)
        before, after = at.moments(0.3 * at.x), at.moments(0.33 * at.x)
        z, shift = (at.x_next - before.mean) / before.std, (after.mean - before.mean) / before.std
        expected = (z * shift - shift**2 / 2).flatten(1).mean(1)
        close(at.score(0.33 * at.x) - at.logprob, expected, 2e-6)


def test_a_later_update_moves_the_ratio_and_clips() -> None:
    policy = FieldPolicy(lambda x, sigma: 0.3 * x)
    batch, trainer = sampled(policy, on_policy=False), GRPO(GRPOSpec())
    moved = FieldPolicy(lambda x, sigma: 0.33 * x)
    metrics = [trainer.loss(moved, batch, term).metrics for term in trainer.terms(policy, batch, NO_DRAWS)]
    assert all(m["ratio_deviation"] > 1e-5 for m in metrics)
    assert max(float(m["clip_fraction"]) for m in metrics) > 0.5


@pytest.mark.parametrize(("advantage", "ratio", "slope"), [(1, 1.2, 0), (1, 0.8, -1), (-1, 0.8, 0), (-1, 1.2, 1)])
def test_clipping_is_pessimistic(advantage: int, ratio: float, slope: int) -> None:
    """Only what would raise the objective beyond the clip is cut off."""
    rho = torch.tensor([ratio], requires_grad=True)
    (gradient,) = torch.autograd.grad(clipped(rho, torch.tensor([float(advantage)]), GRPOSpec()).sum(), rho)
    assert gradient.item() == slope


def test_clip_widths_are_separate() -> None:
    rho, one = torch.tensor([1.5, 0.5]), torch.tensor([1.0, -1.0])
    close(clipped(rho, one, GRPOSpec(clip_low=0.1, clip_high=0.3)), torch.tensor([-1.3, 0.9]), 1e-6)


def test_large_advantages_are_clipped() -> None:
    ones = torch.ones(2)
    close(clipped(ones, torch.tensor([50.0, -50.0]), GRPOSpec(adv_clip=2.0)), torch.tensor([-2.0, 2.0]), 0)


def test_the_reference_is_asked_once_per_step_and_only_if_it_counts() -> None:
    def count(beta: float) -> int:
        policy = FieldPolicy(lambda x, sigma: 0.3 * x, reference=lambda x, sigma: 0.2 * x)
        batch = sampled(policy)
        terms = GRPO(GRPOSpec(kl_beta=beta)).terms(policy, batch, NO_DRAWS)
        GRPO(GRPOSpec(kl_beta=beta)).loss(policy, batch, terms[0])
        return policy.calls.count("reference")

    assert (count(0.0), count(0.1)) == (0, 3)


def test_needs() -> None:
    assert GRPOSpec().needs.density == "any"
    assert not GRPOSpec().needs.reference
    assert GRPOSpec(kl_beta=0.1).needs.density == "gaussian"
    assert GRPOSpec(kl_beta=0.1, kl="v").needs.density == "any"
    assert GRPOSpec(kl_beta=0.1, kl="v").needs.reference
    assert GRPOSpec().needs.trajectory == "steps"


def shares_its_step(case: Case) -> bool:
    return case["precision"] == "float32" and len(set(case["inputs"]["step"])) == 1


def is_mixed(case: Case) -> bool:
    return case["precision"] == "float32" and len(set(case["inputs"]["step"])) > 1


@each("flash_grpo", is_mixed)
def test_steps_of_each_prompt_levelled_are_flash_grpos_loss(case: Case) -> None:
    """Each sample in a micro-batch of its own, since it has a step of its own; the mean of lambda is over all."""
    given, expected = case["inputs"], case["outputs"]
    linear, steps = LinearSDE(LinearSDESpec()), given["step"]
    sigmas, count = given["sigmas"].float().tolist(), len(given["step"])
    shares = {step: number / count for step, number in Counter(steps).items()}
    trainer = GRPO(attrs.evolve(golden_spec(case), level=True))
    total, gradients = 0.0, []
    for i, step in enumerate(steps):
        one = slice(i, i + 1)
        x, x_next, old = given["latents"][one], given["next_latents"][one], expected["old_log_prob"][one]
        batch = transition(linear, sigmas[: step + 2], x, x_next, old, given["advantages"][one])
        batch = attrs.evolve(batch, rollout=attrs.evolve(batch.rollout, sigmas=given["sigmas"].float()), shares=shares)
        v = given["velocity"][one].clone().requires_grad_()
        loss = trainer.loss(FieldPolicy(v), batch, ClippedTerm(step, None)).parts["policy"] / count
        total += float(loss.detach())
        gradients += torch.autograd.grad(loss, v)
        lambdas = expected["rectification"].double()
        assert levelled(batch, step) == pytest.approx(float(lambdas[i] / lambdas.mean()), rel=1e-5)
    close(torch.tensor(total), expected["loss"], 1e-6, 1e-5)
    close(torch.cat(gradients), expected["grad_wrt_velocity"], 1e-7, 1e-4)


def test_levelled_steps_move_the_velocity_alike() -> None:
    """The slope of each step's log-probability by the velocity, over the noise it was made with."""
    batch, sizes = sampled(FieldPolicy(lambda x, sigma: 0.3 * x)), {}
    for level in (True, False):
        found = []
        for step in batch.rollout.steps:
            at = Transition.of(batch, step)
            v = (0.3 * at.x).requires_grad_()
            parts = GRPO(GRPOSpec(level=level)).loss(FieldPolicy(v), batch, ClippedTerm(step, None)).parts
            (gradient,) = torch.autograd.grad(parts["policy"], v)
            found.append(float((gradient / (at.x_next - at.moments(v).mean) * at.std().reshape(-1, 1, 1)).abs().mean()))
        sizes[level] = max(found) / min(found)
    assert sizes[True] == pytest.approx(1, rel=1e-3)
    assert sizes[False] > 1.5


@each("flash_grpo", shares_its_step)
def test_one_step_for_all_is_flash_grpos_loss(case: Case) -> None:
    """Its weight, lambda over the batch's mean of lambda, is 1 where all samples share their step."""
    given, expected = case["inputs"], case["outputs"]
    sigmas = given["sigmas"].float().tolist()[: given["step"][0] + 2]
    old = expected["old_log_prob"]
    linear = LinearSDE(LinearSDESpec())
    batch = transition(linear, sigmas, given["latents"], given["next_latents"], old, given["advantages"])
    v = given["velocity"].clone().requires_grad_()
    parts, _ = one_loss(golden_spec(case), FieldPolicy(v), batch)
    close(parts["policy"], expected["loss"], 1e-6, 1e-5)
    (gradient,) = torch.autograd.grad(parts["policy"], v)
    close(gradient, expected["grad_wrt_velocity"], 1e-7, 1e-4)
