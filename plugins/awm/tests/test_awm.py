"""AWM's surrogate and loss against the authors' numbers, gradients included, and what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory.builtin import ODESpec
from flowfactory.contracts.scheduler import per_sample_mean
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Decay
from flowfactory.contracts.types import Batch, Rollout, Update
from flowfactory.schedulers.ode import ODE
from flowfactory_plugin_awm import AWMSpec
from flowfactory_plugin_awm.awm import AWM, Term, kl_weight, surrogate
from support import GRID, Case, FieldPolicy, close, each
from torch import Tensor

SHAPES = [(4, 6, 5), (4, 3, 4, 4), (4, 3, 2, 4, 4)]
ADVANTAGES = torch.tensor([1.3, -0.8, 7.5, 0.0])
SIGMA = torch.tensor([0.9, 0.2, 0.6, 0.4])
NAMES = {"Uniform": "uniform", "t": "t", "t**2": "t2", "huber": "huber", "ghuber": "ghuber"}


def batch_of(x0: Tensor, advantages: Tensor, on_policy: bool = False) -> Batch:
    """A batch whose final latents are given."""
    rollout = Rollout(GRID, (), {len(GRID) - 1: x0}, {})
    return Batch(rollout, {}, advantages.double(), on_policy, ODE(ODESpec()))


def draws(n: int = 4) -> Draws:
    return Draws([("awm", i) for i in range(n)])


def golden_spec(case: Case, **keys: Any) -> AWMSpec:
    given = case["inputs"]
    return AWMSpec(weighting=NAMES[given["weighting"]], power=given["ghuber_power"], **keys)  # type: ignore[arg-type]


# --- goldens -------------------------------------------------------------------------------------------------------


@each("awm_logprob")
def test_surrogate_equals_the_authors(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    ours = surrogate(given["velocity"], given["noise"].double() - given["x0"], given["sigma"], golden_spec(case))
    assert ours.dtype == torch.float64
    close(ours, expected["log_prob_official_f64"], 1e-7)
    close(ours, expected["log_prob_flow_factory_f32"], 1e-6, 1e-5)


def golden_loss(case: Case, adv_max: float = 1.0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The parts, averaged over a golden's noise levels as core does; the ratio; the gradient of their sum."""
    given = case["inputs"]
    spec = golden_spec(
        case, clip_low=given["clip_range"], clip_high=given["clip_range"], adv_clip=given["adv_clip_max"],
        adv_max=adv_max, kl_beta=given["kl_beta"], average_beta=given["ema_beta"],
    )  # fmt: skip
    v = given["velocity"].clone().requires_grad_()
    totals, ratios, count = dict.fromkeys(("policy", "kl", "average"), torch.zeros(())), [], given["T"]
    for k in range(count):
        rows = slice(k * given["B"], (k + 1) * given["B"])
        x0, noise, sigma = given["x0"][rows], given["noise"][rows], given["sigma"][rows]
        old = surrogate(given["velocity_old"][rows], noise - x0, sigma, spec)
        anchors = {
            "kl": (given["velocity_ref"][rows], spec.kl_beta),
            "average": (given["velocity_ema"][rows], spec.average_beta),
        }
        loss = AWM(spec).loss(FieldPolicy(v[rows]), batch_of(x0, given["advantages"]), Term(sigma, noise, old, anchors))
        totals = {part: totals[part] + value / count for part, value in loss.parts.items()}
        ratios.append((surrogate(v[rows], noise - x0, sigma, spec) - old).exp())
    (gradient,) = torch.autograd.grad(sum(totals.values()), v)
    return totals, torch.cat(ratios), gradient


@each("awm_loss")
def test_loss_equals_the_authors(case: Case) -> None:
    expected, (parts, ratio, gradient) = case["outputs"], golden_loss(case)
    close(ratio, expected["ratio"], 1e-7)
    close(parts["policy"], expected["policy_loss"], 1e-8, 1e-5)
    close(parts["kl"], case["inputs"]["kl_beta"] * expected["kl"], 1e-9, 1e-5)
    close(parts["average"], case["inputs"]["ema_beta"] * expected["ema_kl"], 1e-9, 1e-5)
    close(sum(parts.values(), torch.zeros(())), expected["loss"], 1e-8, 1e-5)
    close(gradient, expected["grad_velocity"], 1e-7, 1e-4)


@each("awm_loss")
def test_flow_factorys_loss_has_advantages_five_times_as_large(case: Case) -> None:
    """It clips them where the authors clip and divide; as a choice of `adv_max` it is ours too."""
    parts, _, _ = golden_loss(case, adv_max=case["inputs"]["adv_clip_max"])
    close(parts["policy"], case["outputs"]["flow_factory_policy_loss_mean_over_T"], 1e-7, 1e-5)


@each("decay_schedules", lambda case: case["name"] == "ff_piecewise_linear")
def test_the_averaged_policy_follows_as_the_authors(case: Case) -> None:
    """`min(0.3, 0.001 step)`: the published limit on the schedule Flow-Factory calls piecewise linear."""
    decay = AWMSpec().average
    for step, value in zip(case["inputs"]["steps"], case["outputs"]["decay"], strict=True):
        assert decay.at(step) == pytest.approx(min(value, 0.3), abs=1e-12)


# --- what the loss does --------------------------------------------------------------------------------------------


def term_of(v: Tensor, noise: Tensor, logprob: Tensor | None = None) -> Term:
    return Term(SIGMA, noise, logprob, {})


@pytest.mark.parametrize("weighting", ["uniform", "t", "t2", "huber", "ghuber"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"rank{len(s)}")
def test_the_first_update_weighs_the_matching_loss_by_the_advantage(shape: tuple[int, ...], weighting: str) -> None:
    """At ratio 1 the gradient is that of `-A lp`, whether the old log-probability was kept or is the current one."""
    noise, x0, start = torch.randn(3, *shape).unbind()
    spec = AWMSpec(weighting=weighting)  # type: ignore[arg-type]
    v = start.requires_grad_()
    (expected,) = torch.autograd.grad(-(ADVANTAGES.clamp(-5, 5) / 5 * surrogate(v, noise - x0, SIGMA, spec)).mean(), v)
    for kept in (None, surrogate(v, noise - x0, SIGMA, spec).detach()):
        loss = AWM(spec).loss(FieldPolicy(v), batch_of(x0, ADVANTAGES, kept is None), term_of(v, noise, kept))
        assert loss.metrics["ratio_deviation"] == 0
        close(torch.autograd.grad(loss.parts["policy"], v)[0], expected, 1e-9, 1e-5)
    assert expected[0].abs().min() > 0
    assert (expected[3] == 0).all()


def test_a_good_sample_is_matched_better_after_a_step() -> None:
    noise, x0, v = torch.randn(3, 4, 6, 5).unbind()
    v.requires_grad_()
    loss = AWM(AWMSpec()).loss(FieldPolicy(v), batch_of(x0, ADVANTAGES, True), term_of(v, noise))
    (gradient,) = torch.autograd.grad(loss.parts["policy"], v)
    before, after = (per_sample_mean((p - (noise - x0)) ** 2) for p in (v, v - 0.1 * gradient))
    assert after[0] < before[0]
    assert after[1] > before[1]
    assert after[2] < before[2]


def test_a_later_update_moves_the_ratio_and_clips() -> None:
    noise, x0, old = torch.randn(3, 4, 6, 5).unbind()
    spec = AWMSpec(clip_low=1e-3, clip_high=1e-3)
    kept = surrogate(old, noise - x0, SIGMA, spec)
    v = (0.9 * old).requires_grad_()
    loss = AWM(spec).loss(FieldPolicy(v), batch_of(x0, ADVANTAGES), term_of(v, noise, kept))
    assert loss.metrics["ratio_deviation"] > 1e-3
    assert loss.metrics["clip_fraction"] > 0
    ratio = (surrogate(v, noise - x0, SIGMA, spec) - kept).exp()
    (gradient,) = torch.autograd.grad(loss.parts["policy"], v)
    outward = (ADVANTAGES > 0) & (ratio > 1 + 1e-3) | (ADVANTAGES < 0) & (ratio < 1 - 1e-3)
    assert torch.equal(gradient.flatten(1).abs().sum(1) == 0, outward | (ADVANTAGES == 0))


def test_loss_ignores_the_rank_of_latents() -> None:
    flat = torch.randn(3, 4, 24)

    def loss(*shape: int) -> Tensor:
        v, noise, x0 = flat.reshape(3, 4, *shape).unbind()
        term = Term(SIGMA, noise, None, {"kl": (x0, 0.1)})
        parts = AWM(AWMSpec(kl="elbo")).loss(FieldPolicy(v), batch_of(x0, ADVANTAGES), term).parts
        return torch.stack(list(parts.values()))

    for shape in [(4, 6), (2, 3, 4), (2, 2, 3, 2)]:
        close(loss(*shape), loss(24), 1e-9, 1e-6)


def test_elbo_weight_is_flow_sdes() -> None:
    """`1 / (2 g²)`, `g = 0.7 sqrt(s / (1 - min(s, 0.99)))`."""
    s = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    g = 0.7 * (s / torch.tensor([0.8, 0.5, 0.01], dtype=torch.float64)).sqrt()
    close(kl_weight(s, AWMSpec(kl="elbo")), 1 / (2 * g**2), 1e-12)
    close(kl_weight(s, AWMSpec()), torch.ones(3), 0)


@pytest.mark.parametrize("kl", ["uniform", "elbo"])
def test_divergences_are_weighed_by_noise_level(kl: str) -> None:
    noise, x0, v = torch.randn(3, 4, 6, 5).unbind()
    spec = AWMSpec(kl=kl)  # type: ignore[arg-type]
    loss = AWM(spec).loss(FieldPolicy(v), batch_of(x0, ADVANTAGES), Term(SIGMA, noise, None, {"kl": (x0, 0.1)}))
    expected = (per_sample_mean((v - x0) ** 2) * kl_weight(SIGMA, spec)).mean()
    close(loss.metrics["kl"], expected, 1e-6, 1e-6)
    close(loss.parts["kl"], 0.1 * expected, 1e-7, 1e-6)


# --- weights -------------------------------------------------------------------------------------------------------


def policy() -> FieldPolicy:
    return FieldPolicy(lambda x, sigma: 0.3 * x, reference=lambda x, sigma: 0.1 * x, average=lambda x, sigma: 0.2 * x)


@pytest.mark.parametrize("on_policy", [True, False])
def test_terms_ask_each_policy_once_per_level(on_policy: bool) -> None:
    """The first update needs no old log-probability: it is the current one."""
    asked, x0 = policy(), torch.randn(4, 6, 5)
    terms = AWM(AWMSpec()).terms(asked, batch_of(x0, ADVANTAGES, on_policy), draws())
    sets = ["reference", "average"] if on_policy else ["current", "reference", "average"]
    assert asked.calls == [weights for weights in sets for _ in range(6)]
    for term in terms:
        level = term.sigma[:, None, None]
        x = (1 - level) * x0 + level * term.noise
        close(term.anchors["kl"][0], 0.1 * x, 1e-6)
        close(term.anchors["average"][0], 0.2 * x, 1e-6)
        assert (term.logprob is None) == on_policy


def test_replay_has_ratio_exactly_one() -> None:
    asked, batch = policy(), batch_of(torch.randn(4, 6, 5), ADVANTAGES)
    trainer = AWM(AWMSpec())
    for term in trainer.terms(asked, batch, draws()):
        assert trainer.loss(asked, batch, term).metrics["ratio_deviation"] == 0


def test_parts_without_weight_are_absent() -> None:
    asked, batch = policy(), batch_of(torch.randn(4, 6, 5), ADVANTAGES, True)
    trainer = AWM(AWMSpec(kl_beta=0.0, average_beta=0.0))
    (term, *_) = trainer.terms(asked, batch, draws())
    assert asked.calls == []
    assert set(trainer.loss(asked, batch, term).parts) == {"policy"}
    assert trainer.needs.sets == frozenset()
    assert not trainer.needs.reference
    trainer.after_update(asked, Update(0, 0, 1, last=True))
    assert asked.moves == []


def test_the_average_needs_no_reference() -> None:
    """The authors add it only if `kl_beta` is positive too."""
    batch, trainer = batch_of(torch.randn(4, 6, 5), ADVANTAGES, True), AWM(AWMSpec(kl_beta=0.0))
    (term, *_) = trainer.terms(policy(), batch, draws())
    assert set(trainer.loss(policy(), batch, term).parts) == {"policy", "average"}


def test_the_average_moves_once_per_epoch() -> None:
    asked, trainer = policy(), AWM(AWMSpec(average=Decay(rate=0.1, limit=0.3)))
    for step in range(1, 9):
        trainer.after_update(asked, Update(epoch=(step - 1) // 2, index=(step - 1) % 2, step=step, last=step % 2 == 0))
    assert asked.moves == [("average", 0.2)] + [("average", 0.3)] * 3


def test_needs() -> None:
    needs = AWMSpec().needs
    assert (needs.trajectory, needs.rollout, needs.density, needs.sets) == ("final", "current", "none", {"average"})
    assert needs.reference
