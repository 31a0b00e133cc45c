"""DGPO's loss against the numbers of other people's code, gradients included, and what its weights and its clip do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory.builtin import ODESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Decay, Times
from flowfactory.contracts.types import Batch, Rollout, Update
from flowfactory.losses.groups import averaging, over_groups
from flowfactory.schedulers.ode import ODE
from flowfactory_plugin_dgpo import DGPOSpec
from flowfactory_plugin_dgpo.dgpo import DGPO, Term, error
from support import GRID, STORAGE, Case, FieldPolicy, close, each
from torch import Tensor
from torch.nn.functional import logsigmoid

GROUPS = torch.tensor([7, 7, 7, 3, 3])
A = torch.tensor([1.2, -0.7, -0.5, 6.0, -1.0])


def batch_of(x0: Tensor, advantages: Tensor, groups: Tensor) -> Batch:
    """A batch whose final latents are given."""
    rollout = Rollout(GRID, (), {len(GRID) - 1: x0}, {})
    return Batch(rollout, {}, advantages.double(), False, ODE(ODESpec()), groups)


def draws(groups: Tensor) -> Draws:
    return Draws([("dgpo", slot) for slot in groups.tolist()])


class Given:
    """Draws of which the noise was made elsewhere."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return len(self.noise)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(len(self), *shape)

    def normal(self, *shape: int) -> Tensor:
        assert shape == self.noise.shape[1:]
        return self.noise


def at(sigma: float) -> Times:
    """One level, whatever is drawn."""
    return Times(rule="uniform", range=(sigma, sigma), count=1)


# --- goldens -------------------------------------------------------------------------------------------------------


@each("dgpo")
def test_loss_equals_flow_factorys(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    low, high = given["clip_range"]
    spec = DGPOSpec(
        times=at(given["sigma"]),
        beta=given["dpo_beta"],
        baseline="old" if given["use_ema_ref"] else "reference",
        clip_low=-low,
        clip_high=high,
        adv_clip=given["adv_clip_range"][1],
        kl_beta=given["kl_beta"],
    )
    v = given["velocity"].clone().requires_grad_()
    policy = FieldPolicy(v, old=given["velocity_old_ema_ref"], reference=given["velocity_ref"])
    batch, noise = batch_of(given["x0"], given["advantages"], torch.tensor(given["groups"])), Given(given["noise"])
    (term,) = DGPO(spec).terms(policy, batch, noise)  # type: ignore[arg-type]
    loss = DGPO(spec).loss(policy, batch, term)
    close(error(v, given["noise"] - given["x0"]), expected["dsm"], 0, 1e-5)
    close(loss.metrics["matching_loss"], expected["dsm"].mean(), 0, 1e-5)
    close(loss.metrics["clip_fraction"], expected["should_clip"].float().mean(), 0)
    close(loss.metrics["group_weight"], expected["group_weights"].mean(), 0, 1e-5)
    close(loss.parts["policy"], expected["dgpo_loss"], 0, 1e-5)
    close(loss.metrics["kl"], expected["kl"], 0, 1e-5)
    total = loss.parts["policy"] + loss.parts["kl"]
    close(total, expected["loss"], 0, 1e-5)
    (gradient,) = torch.autograd.grad(total, v)
    close(gradient, expected["grad_velocity"], 1e-7, 1e-4)


# --- what the loss does --------------------------------------------------------------------------------------------


def gradient(v: Tensor, base: Tensor, advantages: Tensor, groups: Tensor, **keys: Any) -> tuple[Tensor, Tensor]:
    """Of velocities `(B, …)` the loss and its gradient; noise and data are such that their target is 0."""
    v, wide = v.clone().requires_grad_(), {"clip_low": 9.0, "clip_high": 9.0, "kl_beta": 0.0}
    x0 = torch.randn(v.shape, generator=torch.Generator().manual_seed(1))
    batch, sigma = batch_of(x0, advantages, groups), torch.full((len(v),), 0.6)
    d = error(base, torch.zeros_like(base))
    loss = DGPO(DGPOSpec(**(wide | keys))).loss(FieldPolicy(v), batch, Term(sigma, x0, d, d, None)).parts["policy"]
    return loss, torch.autograd.grad(loss, v)[0]


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 4), (3, 2, 4, 4)], ids=lambda s: f"rank{len(s) + 1}")
def test_where_nothing_has_moved_samples_are_pulled_by_half_their_advantage(shape: tuple[int, ...]) -> None:
    v = torch.randn(5, *shape)
    _, found = gradient(v, v, A, GROUPS)
    clipped = A.clamp(-5, 5) / torch.tensor([3.0, 3, 3, 2, 2]) / 2  # the mean over the group, then over both
    expected = 0.5 * clipped.reshape(-1, *[1] * len(shape)) * 2 * v / v[0].numel()
    close(found, expected, 1e-8, 1e-5)


def test_the_gradient_is_that_of_the_preference() -> None:
    """It is that of `-log sigmoid(R)`, divided by beta, `R` being how much the better ones have gained on the worse."""
    v, base, beta = torch.randn(5, 12), torch.randn(5, 12), 3.0
    _, found = gradient(v, base, A, GROUPS, beta=beta)
    v.requires_grad_()
    gain = -beta * averaging(GROUPS) @ (A.clamp(-5, 5).double() * (v.double() ** 2 - base.double() ** 2).mean(1))
    preference = over_groups(-logsigmoid(gain), GROUPS) / beta
    close(found, torch.autograd.grad(preference, v)[0], 1e-8, 1e-5)


def test_a_group_that_is_told_apart_is_left_alone() -> None:
    near, far = torch.full((2, 4), 0.1), torch.full((2, 4), 3.0)
    v, base = torch.cat([near[:1], far[:1]]), torch.ones(2, 4)  # the better sample fits, the worse one does not
    _, done = gradient(v, base, torch.tensor([1.0, -1.0]), torch.zeros(2).long(), beta=100.0)
    assert done.abs().max() < 1e-12
    _, wrong = gradient(v, base, torch.tensor([-1.0, 1.0]), torch.zeros(2).long(), beta=100.0)
    assert wrong.abs().min() > 1e-3


def test_the_clip_stops_what_has_gone_far_enough_and_only_that() -> None:
    """The better sample is 0.2 likelier than for the old weights, the worse one 0.2 less likely."""
    old = torch.full((2, 4), 1.0)
    v = torch.stack([torch.full((4,), 0.9), torch.full((4,), 1.1)])
    good, pair = torch.tensor([1.0, -1.0]), torch.zeros(2).long()
    free, whole = gradient(v, old, good, pair)
    for keys, stopped in (
        ({"clip_high": 0.1}, [True, False]),
        ({"clip_low": 0.1}, [False, True]),
        ({"clip_low": 0.1, "clip_high": 0.1}, [True, True]),
        ({"clip_low": 0.3, "clip_high": 0.3}, [False, False]),
    ):
        loss, found = gradient(v, old, good, pair, **keys)
        close(loss, free, 1e-12)
        close(found, torch.where(torch.tensor(stopped)[:, None], 0.0, whole), 1e-12)
    _, back = gradient(v, old, -good, pair, clip_low=0.1, clip_high=0.1)
    assert back.abs().min() > 0  # what went the wrong way goes back


def test_groups_count_alike_whatever_their_size() -> None:
    v, base = torch.randn(5, 8), torch.randn(5, 8)
    both, found = gradient(v, base, A, GROUPS)
    parts = [gradient(v[g], base[g], A[g], GROUPS[g]) for g in (slice(0, 3), slice(3, 5))]
    close(torch.stack([loss for loss, _ in parts]).mean(), both, 1e-12)
    close(torch.cat([g for _, g in parts]) / 2, found, 1e-8)


def test_equal_advantages_and_single_samples_are_no_fault() -> None:
    v = torch.randn(4, 8)
    _, found = gradient(v, v + 0.1, torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1]))
    assert found[:3].abs().max() == 0
    assert found[3].isfinite().all()


# --- weights -------------------------------------------------------------------------------------------------------


def policy() -> FieldPolicy:
    fields = {name: (lambda x, sigma, w=w: w * x) for name, w in {"old": 0.2, "reference": 0.1}.items()}
    return FieldPolicy(lambda x, sigma: 0.3 * x, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_terms_keep_what_the_right_weights_said(dtype: torch.dtype) -> None:
    asked, x0 = policy(), torch.randn(5, 3, 4).to(dtype)
    spec = DGPOSpec(times=Times(rule="uniform", count=3), guidance=3.5, reference_guidance=4.5)
    terms = DGPO(spec).terms(asked, batch_of(x0, A, GROUPS), draws(GROUPS))
    assert asked.calls == ["old"] * 3 + ["reference"] * 3
    assert asked.guidances == [3.5] * 3 + [4.5] * 3
    for term in terms:
        level = term.sigma[:, None, None]
        x, u = (1 - level) * x0.float() + level * term.noise, term.noise - x0.float()
        close(term.old, ((0.2 * x - u) ** 2).mean((1, 2)), 1e-6, 1e-5)
        close(term.base, ((0.1 * x - u) ** 2).mean((1, 2)), 1e-6, 1e-5)
        assert term.reference is not None
        close(term.reference, 0.1 * x, 1e-6)
        for drawn in (term.sigma, term.noise):
            assert all(torch.equal(drawn[i], drawn[0]) for i in (1, 2))
            assert torch.equal(drawn[3], drawn[4])
            assert not torch.equal(drawn[0], drawn[3])
    assert not torch.equal(terms[0].noise, terms[1].noise)


def test_the_old_weights_can_be_the_baseline() -> None:
    asked = policy()
    (term,) = DGPO(DGPOSpec(times=at(0.5), baseline="old")).terms(
        asked, batch_of(torch.randn(5, 4), A, GROUPS), draws(GROUPS)
    )
    assert torch.equal(term.base, term.old)
    assert term.reference is not None
    asked.calls.clear()
    spec = DGPOSpec(times=at(0.5), baseline="old", kl_beta=0.0)
    (term,) = DGPO(spec).terms(asked, batch_of(torch.randn(5, 4), A, GROUPS), draws(GROUPS))
    assert asked.calls == ["old"]
    assert term.reference is None
    assert not spec.needs.reference


def test_without_a_weight_no_velocity_is_kept() -> None:
    (term,) = DGPO(DGPOSpec(times=at(0.5), kl_beta=0.0)).terms(
        policy(), batch_of(torch.randn(5, 4), A, GROUPS), draws(GROUPS)
    )
    assert term.reference is None
    assert not torch.equal(term.base, term.old)


def test_needs() -> None:
    needs = DGPOSpec().needs
    assert (needs.batch, needs.draws, needs.trajectory, needs.density) == ("groups", "group", "final", "none")
    assert (needs.rollout, needs.sets, needs.reference) == ("sampler", {"old", "sampler"}, True)
    on_policy = DGPOSpec(sampler=Decay(rate=0, limit=0)).needs
    assert (on_policy.rollout, on_policy.sets) == ("current", {"old"})


def test_old_weights_and_sampler_move_after_every_update() -> None:
    """The old weights as the authors', who count updates from 0; samples are the trained weights' for 200 of them."""
    asked, trainer = policy(), DGPO(DGPOSpec())
    for step in (1, 2, 200, 201, 202, 400):
        trainer.after_update(asked, Update(epoch=step, index=0, step=step, last=False))
    moves = {name: [decay for set_, decay in asked.moves if set_ == name] for name in ("old", "sampler")}
    assert moves["old"] == pytest.approx([0.0, 0.001, 0.199, 0.2, 0.201, 0.3])
    assert moves["sampler"] == pytest.approx([0.0, 0.0, 0.0, 0.2, 0.201, 0.3])
    asked.moves.clear()
    DGPO(DGPOSpec(sampler=Decay(rate=0, limit=0))).after_update(asked, Update(1, 0, 5, last=True))
    assert [name for name, _ in asked.moves] == ["old"]
