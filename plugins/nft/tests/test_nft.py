"""DiffusionNFT's loss against the authors' numbers, gradients included, and what its old policy does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory.builtin import ODESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Decay, Times
from flowfactory.contracts.types import Batch, Rollout, Update
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.ode import ODE
from flowfactory_plugin_nft import NFTSpec
from flowfactory_plugin_nft.nft import NFT, Term, contrast, optimality
from support import GRID, STORAGE, Case, FieldPolicy, close, each
from torch import Tensor

SHAPES = [(4, 6, 5), (4, 3, 4, 4), (4, 3, 2, 4, 4)]
ADVANTAGES = torch.tensor([1.3, -0.8, 7.5, 0.0])


def batch_of(x0: Tensor, advantages: Tensor) -> Batch:
    """A batch whose final latents are given."""
    rollout = Rollout(GRID, (), {len(GRID) - 1: x0}, {})
    return Batch(rollout, {}, advantages.double(), False, ODE(ODESpec()))


def draws(n: int = 4) -> Draws:
    return Draws([("nft", i) for i in range(n)])


def golden_spec(case: Case, **keys: Any) -> NFTSpec:
    given = case["inputs"]
    return NFTSpec(beta=given["nft_beta"], kl_beta=given["kl_beta"], adv_clip=given["adv_clip_max"], **keys)


# --- goldens -------------------------------------------------------------------------------------------------------


@each("nft_loss", lambda case: "velocity" in case["inputs"] and case["precision"] != "f64")
def test_loss_equals_the_authors(case: Case) -> None:
    given, expected, v = case["inputs"], case["outputs"], case["inputs"]["velocity"].clone().requires_grad_()
    term = Term(given["sigma"], given["noise"], given["velocity_old"], given["velocity_ref"])
    loss = NFT(golden_spec(case)).loss(FieldPolicy(v), batch_of(given["x0"], given["advantages"]), term)
    assert loss.parts["policy"].dtype == torch.float64
    close(loss.parts["policy"], expected["policy_loss"], 0, 1e-5)
    close(loss.parts["policy"] / given["adv_clip_max"], expected["unweighted_policy_loss"], 0, 1e-5)
    close(loss.parts["kl"], given["kl_beta"] * expected["kl"], 1e-12, 1e-5)
    close(loss.metrics["optimality"], expected["r"].mean(), 1e-7)
    close(loss.metrics["loss_positive"], expected["positive_loss"].mean(), 0, 1e-5)
    close(loss.metrics["loss_negative"], expected["negative_loss"].mean(), 0, 1e-5)
    total = loss.parts["policy"] + loss.parts["kl"]
    close(total, expected["loss"], 0, 1e-5)
    (gradient,) = torch.autograd.grad(total, v)
    # The authors form the error in float32; at beta 0.1 that costs more than 1e-7, as the golden's own check records.
    close(gradient, expected["grad_velocity"], max(1e-7, case["check"]["grad"]), 1e-4)


@each("nft_loss", lambda case: case["precision"] == "f64")
def test_a_perfect_prediction_has_no_loss_and_no_nan(case: Case) -> None:
    given, v = case["inputs"], case["inputs"]["velocity"].clone().requires_grad_()
    positive, negative = contrast(v, given["velocity_old"], given["noise"] - given["x0"], given["sigma"], 1.0)
    close(positive, case["outputs"]["positive_loss"], 1e-12)
    close(negative, case["outputs"]["negative_loss"], 1e-12)
    assert torch.autograd.grad((positive + negative).sum(), v)[0].isfinite().all()


MODES = {"positive_only": "positive", "negative_only": "negative", "one_only": "one", "binary": "binary"}


@each("nft_loss", lambda case: "mode" in case["inputs"])
def test_modes_equal_the_authors(case: Case) -> None:
    spec = NFTSpec(adv_clip=case["inputs"]["adv_clip_max"], mode=MODES[case["inputs"]["mode"]])  # type: ignore[arg-type]
    close(optimality(case["inputs"]["advantages"], spec), case["outputs"]["r"], 1e-7)


# --- what the loss does --------------------------------------------------------------------------------------------


def test_optimality() -> None:
    A = torch.tensor([-9.0, -5.0, -2.5, 0.0, 2.5, 9.0])
    expected = {
        "all": [0.0, 0.0, 0.25, 0.5, 0.75, 1.0],
        "positive": [0.5, 0.5, 0.5, 0.5, 0.75, 1.0],
        "negative": [0.0, 0.0, 0.25, 0.5, 0.5, 0.5],
        "one": [0.5, 0.5, 0.5, 0.5, 0.6, 0.6],
        "binary": [0.4, 0.4, 0.4, 0.5, 0.6, 0.6],
    }
    for mode, values in expected.items():
        close(optimality(A, NFTSpec(mode=mode)), torch.tensor(values), 1e-7)  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [1.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"rank{len(s)}")
def test_gradient_at_the_old_policy_is_signed_by_the_advantage(shape: tuple[int, ...], beta: float) -> None:
    """It is `(2r - 1)` times the gradient of fitting the sample: towards good ones, away from bad, 0 for average."""
    old, noise, x0 = torch.randn(3, *shape).unbind()
    sigma, v = torch.tensor([0.9, 0.2, 0.6, 0.4]), old.clone().requires_grad_()
    trainer, batch = NFT(NFTSpec(beta=beta, kl_beta=0.0)), batch_of(x0, ADVANTAGES)
    loss = trainer.loss(FieldPolicy(v), batch, Term(sigma, noise, old, None)).parts["policy"]
    (ours,) = torch.autograd.grad(loss, v)
    fit = contrast(v, old, noise - x0, sigma, 1.0)[0].mean()
    (towards,) = torch.autograd.grad(fit, v)
    direction = (2 * optimality(ADVANTAGES, trainer.spec) - 1).reshape(-1, *[1] * (len(shape) - 1))
    close(ours, 5 * direction * towards, 1e-9, 1e-5)
    assert ours[3].abs().max() < 1e-12
    assert ours[0].abs().min() > 0


def test_loss_ignores_the_rank_of_latents() -> None:
    flat = torch.randn(4, 4, 24)
    sigma = torch.tensor([0.9, 0.2, 0.6, 0.4])

    def loss(*shape: int) -> Tensor:
        v, old, noise, x0 = flat.reshape(4, 4, *shape).unbind()
        return (
            NFT(NFTSpec()).loss(FieldPolicy(v), batch_of(x0, ADVANTAGES), Term(sigma, noise, old, old)).parts["policy"]
        )

    for shape in [(4, 6), (2, 3, 4), (2, 2, 3, 2)]:
        close(loss(*shape), loss(24), 1e-12, 1e-9)


def test_samples_do_not_meet() -> None:
    v, old, noise, x0 = torch.randn(4, 4, 3, 4, 4).unbind()
    sigma = torch.tensor([0.9, 0.2, 0.6, 0.4])

    def loss(rows: slice) -> Tensor:
        term = Term(sigma[rows], noise[rows], old[rows], None)
        batch = batch_of(x0[rows], ADVANTAGES[rows])
        return NFT(NFTSpec()).loss(FieldPolicy(v[rows]), batch, term).parts["policy"]

    close(torch.stack([loss(slice(i, i + 1)) for i in range(4)]).mean(), loss(slice(4)), 1e-12, 1e-9)


def test_divisors_have_no_gradient() -> None:
    """By the chain rule `d l+ / dv = -2 beta sigma E / (n max(mean|E|))`, nothing from the divisor."""
    v, old, u = torch.randn(3, 1, 10).double().unbind()
    v.requires_grad_()
    positive, _ = contrast(v, old, u, torch.tensor([0.5]), 0.3)
    error = 0.5 * (u - 0.7 * old - 0.3 * v)
    expected = -2 * 0.3 * 0.5 * error / 10 / error.abs().mean()
    close(torch.autograd.grad(positive.sum(), v)[0], expected, 1e-12)


# --- weights -------------------------------------------------------------------------------------------------------


def policy(**others: float) -> FieldPolicy:
    fields = {name: (lambda x, sigma, w=w: w * x) for name, w in {"old": 0.2, "reference": 0.1, **others}.items()}
    return FieldPolicy(lambda x, sigma: 0.3 * x, **fields)


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_terms_keep_frozen_predictions_of_the_right_weights(dtype: torch.dtype) -> None:
    asked, x0 = policy(), torch.randn(4, 6, 5).to(dtype)
    terms = NFT(NFTSpec(times=Times(rule="subset", count=3))).terms(asked, batch_of(x0, ADVANTAGES), draws())
    assert asked.calls == ["old"] * 3 + ["reference"] * 3
    for term in terms:
        level = term.sigma[:, None, None]
        x = (1 - level) * x0.float() + level * term.noise
        close(term.old, 0.2 * x, 1e-6)
        assert term.reference is not None
        close(term.reference, 0.1 * x, 1e-6)
        assert not term.old.requires_grad
    assert not torch.equal(terms[0].noise, terms[1].noise)


def test_draws_belong_to_samples() -> None:
    x0, trainer = torch.randn(4, 6, 5), NFT(NFTSpec())
    together = trainer.terms(policy(), batch_of(x0, ADVANTAGES), draws())
    alone = trainer.terms(policy(), batch_of(x0[2:3], ADVANTAGES[2:3]), Draws([("nft", 2)]))
    assert len(together) == 9
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.sigma[2:3], b.sigma)
        assert torch.equal(a.noise[2:3], b.noise)


def test_without_a_weight_the_reference_is_not_asked() -> None:
    asked = policy()
    (term, *_) = NFT(NFTSpec(kl_beta=0.0)).terms(asked, batch_of(torch.randn(4, 6, 5), ADVANTAGES), draws())
    assert set(asked.calls) == {"old"}
    assert term.reference is None
    assert not NFTSpec(kl_beta=0.0).needs.reference


def test_needs() -> None:
    needs = NFTSpec().needs
    assert (needs.trajectory, needs.rollout, needs.density, needs.sets) == ("final", "old", "none", {"old"})
    assert needs.reference


def test_the_old_policy_moves_once_per_epoch() -> None:
    asked, trainer = policy(), NFT(NFTSpec(old=Decay(rate=0.01, limit=0.5)))
    for step in range(1, 7):
        trainer.after_update(asked, Update(epoch=(step - 1) // 2, index=(step - 1) % 2, step=step, last=step % 2 == 0))
    assert asked.moves == [("old", 0.02), ("old", 0.04), ("old", 0.06)]


def test_learning_goes_towards_the_better_samples() -> None:
    """A policy of one number, rewarded for large samples, comes to make larger ones than it made."""
    shift = torch.zeros(1, requires_grad=True)
    model = FieldPolicy(lambda x, sigma: x - shift, old=lambda x, sigma: x)
    trainer, optimizer = NFT(NFTSpec(kl_beta=0.0)), torch.optim.SGD([shift], lr=0.5)
    x0 = rollout(
        FieldPolicy(lambda x, sigma: x), ODE(ODESpec()), GRID, (), Noise(torch.randn(64, 1, 4), torch.empty(0)), {},
        torch.float32,
    ).final  # fmt: skip
    size = x0.mean(dim=(1, 2))
    batch = batch_of(x0, (size - size.mean()) / size.std())
    for term in trainer.terms(model, batch, draws(64)):
        optimizer.zero_grad()
        trainer.loss(model, batch, term).parts["policy"].backward()
        optimizer.step()
    assert shift.item() > 0.02
