"""The kit's own policy keeps the promises of `Policy`."""

from __future__ import annotations

import torch
from flowfactory.contracts.key import Location
from flowfactory.contracts.specs import Needs
from flowfactory.testing.mean import MeanPolicy


def test_a_trainer_under_test_has_the_weights_it_asks_to_be_loaded() -> None:
    """Each has other weights than the policy, so that a trainer that confuses them is found."""
    needs = Needs(loaded={"one": Location("a/b"), "two": Location("c/d")}, reference=True)
    policy = MeanPolicy(needs)
    x, sigma = torch.zeros(2, 4), torch.full((2,), 0.5)
    seen = []
    for name in ("current", "one", "two", "reference"):
        with policy.using(name):
            seen.append(policy.velocity(x, sigma, {"shift": torch.zeros(2, 4)}))
    assert torch.equal(seen[0], seen[3])
    assert len({float(v[0, 0].detach()) for v in seen}) == 3
