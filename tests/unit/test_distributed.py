"""What processes do together, in a world of two that are one: whatever is added up, doubles."""

from __future__ import annotations

import pytest
import torch
from flowfactory.distributed import Processes
from torch import Tensor, nn


class Twins(Processes):
    """Two processes that always have the same."""

    world = 2  # type: ignore[assignment]
    device = torch.device("cpu")  # type: ignore[assignment]

    def __init__(self) -> None:
        self.accelerator, self._mesh = self, None

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return 2 * values


def test_gradients_are_added_up_and_those_nobody_has_stay_away() -> None:
    used, unused, frozen = (nn.Parameter(torch.ones(2, 3)) for _ in range(3))
    frozen.requires_grad_(False)
    used.grad = torch.arange(6.0).reshape(2, 3)
    Twins().sum_gradients([used, unused, frozen])
    torch.testing.assert_close(used.grad, 2 * torch.arange(6.0).reshape(2, 3))
    assert unused.grad is None
    assert frozen.grad is None


@pytest.mark.parametrize("present", [True, False])
def test_a_world_of_one_needs_no_message(present: bool) -> None:
    class Alone(Twins):
        world = 1

    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2) if present else None
    Alone().sum_gradients([parameter])
    assert (parameter.grad is not None) == present
    if present:
        assert torch.equal(parameter.grad, torch.ones(2))
