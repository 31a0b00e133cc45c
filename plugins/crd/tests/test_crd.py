"""Centered Reward Distillation against the numbers of other people's code, gradients included, and what it matches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory.builtin import ODESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Decay, Times
from flowfactory.contracts.types import Batch, Rollout, Update
from flowfactory.losses.groups import averaging
from flowfactory.schedulers.ode import ODE
from flowfactory_plugin_crd import CRDSpec
from flowfactory_plugin_crd.crd import CRD, Term, centres, log_likelihood, mismatch, optimality
from support import GRID, STORAGE, Case, FieldPolicy, close, each
from torch import Tensor

GROUPS = torch.tensor([7, 7, 7, 3, 3])
A = torch.tensor([1.2, -0.7, -0.5, 6.0, -2.0])


def batch_of(x0: Tensor, advantages: Tensor, groups: Tensor) -> Batch:
    """A batch whose final latents are given."""
    rollout = Rollout(GRID, (), {len(GRID) - 1: x0}, {})
    return Batch(rollout, {}, advantages.double(), False, ODE(ODESpec()), groups)


def draws(n: int = 5) -> Draws:
    return Draws([("crd", i) for i in range(n)])


# --- goldens -------------------------------------------------------------------------------------------------------


def golden_spec(case: Case) -> CRDSpec:
    given = case["inputs"]
    return CRDSpec(
        beta=given["crd_beta"],
        loss=given["loss_type"],
        temperature=given["weight_temp"] if given["weight_temp"] > 0 else None,
        adaptive=given["adaptive_logp"],
        adv_clip=given["adv_clip_max"],
        kl_beta=given["kl_beta"],
        adaptive_kl=given["reward_adaptive_kl"],
    )


@each("crd", lambda case: case["inputs"]["weight_temp"] != 0)
def test_loss_equals_flow_factorys(case: Case) -> None:
    """Its micro-batch is one group here."""
    given, expected, spec = case["inputs"], case["outputs"], golden_spec(case)
    v = given["velocity"].clone().requires_grad_()
    term = Term(torch.full((4,), 0.5), given["noise"], given["velocity_old"], given["velocity_ref"])
    batch = batch_of(given["x0"], given["advantages"], torch.zeros(4).long())
    loss = CRD(spec).loss(FieldPolicy(v), batch, term)
    u = given["noise"] - given["x0"]
    R = log_likelihood(v, u, spec.adaptive) - log_likelihood(given["velocity_old"], u, spec.adaptive)
    close(R, expected["implicit_reward"], 1e-6, 1e-5)
    close(optimality(batch.advantages, spec.adv_clip), expected["normalized_advantage"], 1e-7)
    close(loss.parts["policy"], expected["policy_loss"], 0, 1e-5)
    close(loss.parts["policy"] * spec.beta / spec.adv_clip, expected["unweighted_policy_loss"], 0, 1e-5)
    close(loss.parts["kl"], expected["kl_loss"], 0, 1e-5)
    total = loss.parts["policy"] + loss.parts["kl"]
    close(total, expected["loss"], 0, 1e-5)
    (gradient,) = torch.autograd.grad(total, v)
    close(gradient, expected["grad_velocity"], 1e-7, 1e-4)


@each("crd", lambda case: case["inputs"]["weight_temp"] == 0)
def test_hard_selection_is_a_mean_of_two_centres_we_have(case: Case) -> None:
    """Its pools are of `q > 0`, which is all, and of `q < 0`, which is none and then all alike."""
    given, expected, spec = case["inputs"], case["outputs"], golden_spec(case)
    v = given["velocity"].clone().requires_grad_()
    u, groups = given["noise"] - given["x0"], torch.zeros(4).long()
    q = optimality(given["advantages"], spec.adv_clip)
    R = log_likelihood(v, u, True) - log_likelihood(given["velocity_old"], u, True)
    close(R, expected["implicit_reward"], 1e-6, 1e-5)
    means = (averaging(groups, q), averaging(groups))
    found = torch.stack([mismatch(R, q, mean, spec).mean() for mean in means]).mean()
    close(spec.adv_clip / spec.beta * found, expected["policy_loss"], 0, 1e-5)
    distance = ((v - given["velocity_ref"]) ** 2).mean((1, 2, 3))
    total = spec.adv_clip / spec.beta * found + ((1e-4 + q * (spec.kl_beta - 1e-4)) * distance).mean()
    close(total, expected["loss"], 0, 1e-5)
    close(torch.autograd.grad(total, v)[0], expected["grad_velocity"], 1e-7, 1e-4)


# --- what the loss does --------------------------------------------------------------------------------------------


def lossy(v: Tensor, old: Tensor, advantages: Tensor, groups: Tensor, **keys: Any) -> tuple[Tensor, Tensor]:
    """The policy's loss and its gradient by `v` `(B, …)`; noise and data are such that the target is 0."""
    v, spec = v.clone().requires_grad_(), CRDSpec(**({"kl_beta": 0.0} | keys))
    x0 = torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
    term = Term(torch.full((len(v),), 0.6), x0, old, None)
    loss = CRD(spec).loss(FieldPolicy(v), batch_of(x0, advantages, groups), term).parts["policy"]
    return loss, torch.autograd.grad(loss, v)[0]


@pytest.mark.parametrize("keys", [{}, {"temperature": 0.5}, {"loss": "bce"}, {"adaptive": False}], ids=str)
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 4), (3, 2, 4, 4)], ids=lambda s: f"rank{len(s) + 1}")
def test_from_the_old_weights_it_leads_to_good_samples_and_away_from_bad(
    shape: tuple[int, ...], keys: dict[str, Any]
) -> None:
    v = torch.randn(5, *shape)
    _, found = lossy(v, v, A, GROUPS, **keys)
    towards = (-found * -v).flatten(1).sum(1)  # the target is 0
    best, worst = torch.tensor([0, 3]), torch.tensor([1, 4])
    assert (towards[best] > 0).all()
    assert (towards[worst] < 0).all()


def test_what_is_added_to_all_of_a_group_counts_nothing() -> None:
    """The normaliser that nobody knows: implicit rewards of a prompt may all be off by the same number."""
    R, q, spec = torch.randn(5, dtype=torch.float64), optimality(A, 5.0), CRDSpec()
    shifts = torch.tensor([3.0, 3, 3, -8, -8], dtype=torch.float64)
    for temperature in (None, 0.3):
        for mean in centres(GROUPS, q, temperature):
            close(mismatch(R + shifts, q, mean, spec), mismatch(R, q, mean, spec), 1e-12)
            close(mismatch(R, q + shifts, mean, spec), mismatch(R, q, mean, spec), 1e-12)


def test_what_matches_has_no_loss() -> None:
    q, spec = optimality(A, 5.0), CRDSpec(beta=0.25)
    (mean,) = centres(GROUPS, q, None)
    close(mismatch(q / 0.25 + 9.0, q, mean, spec), torch.zeros(5), 1e-12)


def test_pools_are_of_ones_own_group() -> None:
    better, worse = centres(GROUPS, optimality(A, 5.0), 0.05)
    for mean in (better, worse):
        close(mean.sum(1), torch.ones(5), 1e-12)
        assert float(mean[:3, 3:].abs().max()) == float(mean[3:, :3].abs().max()) == 0
    assert better[0].argmax() == better[1].argmax() == 0
    assert worse[0].argmax() == 1
    assert (better[3].argmax(), worse[4].argmax()) == (3, 4)


def test_neither_centres_nor_divisors_have_a_gradient() -> None:
    v, old = torch.randn(5, 12), torch.randn(5, 12)
    _, found = lossy(v, old, A, GROUPS)
    size, q = v.double().abs().mean(1), optimality(A, 5.0)
    R = -(v.double() ** 2).mean(1) / size + (old.double() ** 2).mean(1) / old.double().abs().mean(1)
    own = averaging(GROUPS)
    off = (R - own @ R) - (q - own @ q)
    share = torch.tensor([3.0, 3, 3, 2, 2]) * 2  # the mean over the group, then over both
    expected = 5 * (2 * off / share)[:, None] * (-2 * v / 12 / size[:, None])
    close(found, expected, 1e-8, 1e-5)


def test_groups_count_alike_whatever_their_size() -> None:
    v, old = torch.randn(5, 8), torch.randn(5, 8)
    for keys in ({}, {"temperature": 0.5}):
        both, found = lossy(v, old, A, GROUPS, **keys)
        parts = [lossy(v[g], old[g], A[g], GROUPS[g], **keys) for g in (slice(0, 3), slice(3, 5))]
        close(torch.stack([loss for loss, _ in parts]).mean(), both, 1e-12)
        close(torch.cat([g for _, g in parts]) / 2, found, 1e-8)


def test_single_samples_teach_nothing() -> None:
    v = torch.randn(2, 8)
    loss, found = lossy(v, v + 0.1, torch.tensor([2.0, -1.0]), torch.tensor([0, 1]))
    assert float(loss.detach()) == 0
    assert found.abs().max() == 0


def test_a_perfect_prediction_is_finite() -> None:
    zero = torch.zeros(2, 8)
    loss, found = lossy(zero, torch.ones(2, 8), torch.tensor([1.0, -1.0]), torch.zeros(2).long())
    assert loss.isfinite()
    assert found.isfinite().all()


def test_the_divergence_counts_for_good_samples() -> None:
    """A sample of optimality 1 is kept at the reference with `kl_beta`, one of 0 with 1e-4."""
    v, groups = torch.ones(2, 8, requires_grad=True), torch.tensor([0, 1])
    term = Term(torch.full((2,), 0.6), torch.zeros(2, 8), torch.ones(2, 8), torch.zeros(2, 8))
    batch = batch_of(torch.zeros(2, 8), torch.tensor([5.0, -5.0]), groups)
    for adaptive, weights in ((True, [0.1, 1e-4]), (False, [0.1, 0.1])):
        loss = CRD(CRDSpec(adaptive_kl=adaptive)).loss(FieldPolicy(v), batch, term)
        close(loss.parts["kl"], torch.tensor(weights).mean(), 0, 1e-6)
        close(loss.metrics["kl"], torch.tensor(1.0), 1e-7)
        (found,) = torch.autograd.grad(loss.parts["kl"], v)
        close(found[:, 0], 2 * torch.tensor(weights) / 16, 1e-9, 1e-6)


# --- weights -------------------------------------------------------------------------------------------------------


def policy() -> FieldPolicy:
    fields = {name: (lambda x, sigma, w=w: w * x) for name, w in {"old": 0.2, "reference": 0.1}.items()}
    return FieldPolicy(lambda x, sigma: 0.3 * x, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_terms_keep_what_the_right_weights_said(dtype: torch.dtype) -> None:
    asked, x0 = policy(), torch.randn(5, 3, 4).to(dtype)
    spec = CRDSpec(times=Times(rule="uniform", count=3), guidance=3.5)
    terms = CRD(spec).terms(asked, batch_of(x0, A, GROUPS), draws())
    assert asked.calls == ["old"] * 3 + ["reference"] * 3
    assert asked.guidances == [3.5] * 3 + [4.5] * 3
    for term in terms:
        level = term.sigma[:, None, None]
        x = (1 - level) * x0.float() + level * term.noise
        close(term.old, 0.2 * x, 1e-6)
        assert term.reference is not None
        close(term.reference, 0.1 * x, 1e-6)
    assert not torch.equal(terms[0].noise, terms[1].noise)


def test_draws_belong_to_samples() -> None:
    x0, trainer = torch.randn(5, 6, 5), CRD(CRDSpec())
    together = trainer.terms(policy(), batch_of(x0, A, GROUPS), draws())
    alone = trainer.terms(policy(), batch_of(x0[2:3], A[2:3], GROUPS[2:3]), Draws([("crd", 2)]))
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.sigma[2:3], b.sigma)
        assert torch.equal(a.noise[2:3], b.noise)


def test_without_a_weight_the_reference_is_not_asked() -> None:
    asked = policy()
    (term, *_) = CRD(CRDSpec(kl_beta=0.0)).terms(asked, batch_of(torch.randn(5, 6, 5), A, GROUPS), draws())
    assert set(asked.calls) == {"old"}
    assert term.reference is None
    assert not CRDSpec(kl_beta=0.0).needs.reference


def test_needs() -> None:
    needs = CRDSpec().needs
    assert (needs.batch, needs.draws, needs.trajectory, needs.density) == ("groups", "sample", "final", "none")
    assert (needs.rollout, needs.sets, needs.reference) == ("sampler", {"old", "sampler"}, True)
    on_policy = CRDSpec(sampler=Decay(rate=0, limit=0)).needs
    assert (on_policy.rollout, on_policy.sets) == ("current", {"old"})


def test_old_weights_and_sampler_move_once_per_epoch() -> None:
    """As Flow-Factory's "0-0.25-0.005-0.999" and "75-0.0-0.0075-0.999", by the updates made."""
    asked, trainer = policy(), CRD(CRDSpec())
    for step in (1, 2, 75, 76, 299, 300):
        trainer.after_update(asked, Update(epoch=step // 2, index=step % 2, step=step, last=step % 2 == 0))
    moves = {name: [decay for set_, decay in asked.moves if set_ == name] for name in ("old", "sampler")}
    assert moves["old"] == pytest.approx([0.26, 0.63, 0.999])
    assert moves["sampler"] == pytest.approx([0.0, 0.0075, 0.999])
    asked.moves.clear()
    CRD(CRDSpec(sampler=Decay(rate=0, limit=0))).after_update(asked, Update(1, 0, 5, last=True))
    assert [name for name, _ in asked.moves] == ["old"]
