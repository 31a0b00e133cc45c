"""What a step's new probability is compared with, and how far ratios are from 1 before anything was learned."""

from __future__ import annotations

from typing import Literal

import attrs
import pytest
import torch
from flowfactory import ClippedSpec, clipped_loss, clipped_terms
from flowfactory.builtin import DanceSDESpec
from flowfactory.contracts.types import Batch
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.dance_sde import DanceSDE
from support import GRID, FieldPolicy, close

SCHEDULER = DanceSDE(DanceSDESpec(eta=0.5))
OFF = 3e-5
"""By how much the network rounds otherwise when it trains than when it samples."""


def sampled() -> Batch:
    noise, policy = Noise(torch.randn(3, 2, 4), torch.randn(3, 2, 2, 4)), FieldPolicy(lambda x, sigma: 0.3 * x)
    made = rollout(policy, SCHEDULER, GRID, (4, 5), noise, {}, torch.float32, "steps")
    return Batch(made, {}, torch.tensor([1.0, -1.0, 0.5]).double(), True, SCHEDULER)


@pytest.mark.parametrize("old", ["sampled", "replayed"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_a_network_that_rounds_otherwise_is_compared_with_itself_where_it_is_replayed(
    old: Literal["sampled", "replayed"], on_policy: bool
) -> None:
    batch, asked = attrs.evolve(sampled(), on_policy=on_policy), FieldPolicy(lambda x, sigma: (0.3 + OFF) * x)
    spec = ClippedSpec(old=old, clip_low=1e-4, clip_high=2e-4)
    terms = clipped_terms(asked, batch, spec)
    assert len(asked.calls) == (2 if old == "replayed" and not on_policy else 0)
    for term in terms:
        found = clipped_loss(asked, batch, term, spec).metrics
        assert (found["ratio_deviation"] == 0) == (old == "replayed")
        assert ("first_deviation" in found) == on_policy
        if on_policy:
            close(found["first_deviation"], found["ratio_deviation"] / 1e-4, 1e-6)


def test_the_gradient_of_a_replayed_first_update_is_the_plain_one() -> None:
    """`-A d ln p`: of one and the same probability, once with a gradient and once without."""
    batch, w = sampled(), torch.tensor(0.3, requires_grad=True)
    policy = FieldPolicy(lambda x, sigma: w * x)
    for old in ("sampled", "replayed"):
        spec = ClippedSpec(old=old)  # type: ignore[arg-type]
        for term in clipped_terms(policy, batch, spec):
            (found,) = torch.autograd.grad(clipped_loss(policy, batch, term, spec).parts["policy"], w)
            step = slice(term.step, term.step + 2)
            x, x_next = (batch.rollout.latents[i] for i in (term.step, term.step + 1))
            levels = batch.rollout.sigmas[step, None].expand(2, 3)
            scored = SCHEDULER.logprob(w * x, x, x_next, *levels, batch.rollout.ceiling)
            (plain,) = torch.autograd.grad(-(batch.advantages * scored).mean(), w)
            close(found, plain, 1e-8, 1e-5)
