"""An optimizer whose state rests in main memory steps as any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory.policy import resting
from flowfactory.policy.resting import adamw, put_aside
from flowfactory.spec.tables import Optimizer
from torch import nn


def trained(rests: bool, bits: Any) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((70, 70), (3,), (5, 2), (4,))]
    optimizer = adamw(parameters, Optimizer(lr=0.1, weight_decay=0.1, bits=bits), rests)
    for _ in range(3):
        for parameter in parameters[:-1]:  # the last one never has a gradient
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    return parameters, optimizer


@pytest.mark.parametrize("bits", [32, 8])
def test_steps_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    monkeypatch.setattr(resting, "PIECE", 12)
    (left, plain), (right, ours) = trained(False, bits), trained(True, bits)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert ours.param_groups[0]["params"] == right
    assert [len(ours.state[p]) for p in right[:-1]] == [len(plain.state[p]) for p in left[:-1]]
    for a, b in zip(left[:-1], right[:-1], strict=True):
        for key, value in plain.state[a].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(ours.state[b][key])), key


def test_only_the_state_of_a_piece_is_with_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last parameter has no state."""
    (parameters, ours), (_, plain) = trained(True, 32), trained(False, 32)
    numbers = {id(ours.state[p]): number for number, p in enumerate(parameters) if p in ours.state}
    events: list[Any] = []
    monkeypatch.setattr(resting, "PIECE", 12)
    monkeypatch.setattr(resting, "CPU", "main memory")
    monkeypatch.setattr(resting, "_moved", lambda state, where: events.append((numbers.get(id(state)), str(where))))
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda optimizer: events.append(len(optimizer.param_groups[0]["params"]))
    )
    ours.step()
    aside = "main memory"
    assert events == [(0, "cpu"), 1, (0, aside), (1, "cpu"), 1, (1, aside), (2, "cpu"), 1, (2, aside), 1]
    events.clear()
    put_aside(ours)
    assert events == [(number, aside) for number in (0, 1, 2)]
    put_aside(plain)
    assert len(events) == 3


def test_a_step_that_fails_leaves_the_groups_whole() -> None:
    parameters, ours = trained(True, 32)
    parameters[0].grad = torch.zeros(70, 70).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        ours.step()
    assert ours.param_groups[0]["params"] == parameters
