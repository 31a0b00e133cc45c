"""Flow matching against diffusers' numbers, gradients included, and what its weightings mean."""

from __future__ import annotations

import math

import pytest
import torch
from flowfactory.builtin import ODESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Times
from flowfactory.contracts.types import Batch, Rollout
from flowfactory.schedulers.ode import ODE
from flowfactory_plugin_sft import SFTSpec
from flowfactory_plugin_sft.sft import SFT, Term, weights
from support import GRID, STORAGE, Case, FieldPolicy, close, each
from torch import Tensor

NAMES = {"logit_normal": "none", "mode": "none"}
"""diffusers' schemes that name a sampler of the time, and their weighting here."""


def batch_of(x0: Tensor) -> Batch:
    """A batch whose final latents are given."""
    rollout = Rollout(GRID, (), {len(GRID) - 1: x0}, {})
    return Batch(rollout, {}, torch.zeros(len(x0), dtype=torch.float64), True, ODE(ODESpec()))


def draws(n: int = 4) -> Draws:
    return Draws([("sft", i) for i in range(n)])


@each("sft_loss", lambda case: case["name"].startswith("loss_"))
def test_loss_equals_diffusers(case: Case) -> None:
    given = {name: x.float() if isinstance(x, Tensor) else x for name, x in case["inputs"].items()}
    expected, scheme = case["outputs"], given["weighting"]
    spec = SFTSpec(weighting=NAMES.get(scheme, scheme), precondition=given["loss_space"] == "x0")  # type: ignore[arg-type]
    v = given["velocity"].requires_grad_()
    loss = SFT(spec).loss(FieldPolicy(v), batch_of(given["x0"]), Term(given["sigma"], given["noise"]))
    close(loss.parts["matching"], expected["loss"], 1e-12, 1e-5)
    (gradient,) = torch.autograd.grad(loss.parts["matching"], v)
    close(gradient, expected["grad_wrt_velocity"], 1e-7, 1e-4)
    scale = given["sigma"] ** 2 if spec.precondition else 1.0
    close(weights(given["sigma"], spec), expected["weight"] * scale, 1e-7, 1e-5)


def test_sigma_sqrt_preconditioned_is_the_plain_loss() -> None:
    sigma = torch.tensor([0.0, 0.003, 0.5, 1.0])
    close(weights(sigma, SFTSpec(weighting="sigma_sqrt", precondition=True)), torch.ones(4), 1e-7)
    close(weights(sigma[1:2], SFTSpec(weighting="sigma_sqrt")), torch.tensor([1 / 0.003**2]), 0, 1e-5)


def test_cosmap_has_mean_one_over_even_levels_and_is_largest_in_the_middle() -> None:
    sigma = (torch.arange(1000) + 0.5) / 1000
    found = weights(sigma, SFTSpec(weighting="cosmap"))
    close(found.mean(), torch.tensor(1.0), 1e-5)
    close(found.max(), torch.tensor(4 / math.pi), 1e-4)
    assert abs(int(found.argmax()) - 500) <= 1


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 4), (3, 2, 4, 4)], ids=lambda s: f"rank{len(s) + 1}")
def test_the_gradient_leads_to_the_data(shape: tuple[int, ...]) -> None:
    x0, noise, v = torch.randn(3, 4, *shape).unbind()
    sigma, v = torch.tensor([0.9, 0.2, 0.6, 0.4]), v.requires_grad_()
    loss = SFT(SFTSpec()).loss(FieldPolicy(v), batch_of(x0), Term(sigma, noise)).parts["matching"]
    close(torch.autograd.grad(loss, v)[0], 2 * (v - (noise - x0)) / v.numel(), 1e-8, 1e-5)


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_a_perfect_model_has_no_loss(dtype: torch.dtype) -> None:
    x0 = torch.randn(4, 3, 4).to(dtype)
    trainer, batch = SFT(SFTSpec(times=Times(rule="uniform", count=2))), batch_of(x0)
    for term in trainer.terms(FieldPolicy(x0), batch, draws()):
        asked = FieldPolicy(term.noise - x0.float())
        close(trainer.loss(asked, batch, term).parts["matching"], torch.tensor(0.0), 1e-12)
        assert asked.guidances == [1.0]


def test_it_is_asked_where_data_and_noise_meet() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x, sigma))
        return x

    x0 = torch.randn(4, 3, 4)
    trainer = SFT(SFTSpec(guidance=3.5, times=Times(rule="uniform", count=2)))
    policy, batch = FieldPolicy(velocity), batch_of(x0)
    terms = trainer.terms(policy, batch, draws())
    assert policy.calls == []
    for term in terms:
        trainer.loss(policy, batch, term)
    for term, (x, sigma) in zip(terms, seen, strict=True):
        level = term.sigma[:, None, None]
        close(x, (1 - level) * x0 + level * term.noise, 1e-6)
        assert torch.equal(sigma, term.sigma)
    assert not torch.equal(terms[0].noise, terms[1].noise)
    assert policy.guidances == [3.5, 3.5]


def test_draws_belong_to_samples() -> None:
    x0, trainer = torch.randn(4, 6, 5), SFT(SFTSpec())
    (together,) = trainer.terms(FieldPolicy(x0), batch_of(x0), draws())
    (alone,) = trainer.terms(FieldPolicy(x0), batch_of(x0[2:3]), Draws([("sft", 2)]))
    assert torch.equal(together.sigma[2:3], alone.sigma)
    assert torch.equal(together.noise[2:3], alone.noise)


def test_needs() -> None:
    needs = SFTSpec().needs
    assert (needs.source, needs.scores, needs.trajectory, needs.batch) == ("media", False, "final", "samples")
    assert not needs.reference
