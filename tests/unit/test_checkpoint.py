"""Checkpoints: what is saved is what is restored, and nothing half-written is ever found."""

import json
from pathlib import Path

import pytest
import torch
from flowfactory import checkpoint
from flowfactory.checkpoint import Progress, checkpoints
from flowfactory.spec import Full, Lora
from flowfactory.weights import Weights
from torch import nn


def made(tuning: Lora | Full) -> tuple[nn.Linear, Weights, torch.optim.AdamW]:
    torch.manual_seed(0)
    net = nn.Linear(6, 6)
    weights = Weights({"net": nn.Sequential(net)}, tuning, ["0"], ["ema"], 0)
    return net, weights, torch.optim.AdamW(weights.parameters.values(), lr=0.1)


def train(weights: Weights, optimizer: torch.optim.AdamW, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        weights.networks["net"](x).square().mean().backward()
        optimizer.step()
        weights.move("ema", 0.5)


@pytest.mark.parametrize("tuning", [Full(), Lora(rank=2)])
def test_training_goes_on_bit_for_bit(tmp_path: Path, tuning: Lora | Full) -> None:
    _, weights, optimizer = made(tuning)
    train(weights, optimizer, range(3))
    path = checkpoint.save(tmp_path, Progress(3, 3), weights, optimizer, keep=2, facts={"digest": "x"})
    train(weights, optimizer, range(3, 6))
    _, resumed, fresh = made(tuning)
    assert checkpoint.load(path, resumed, fresh) == Progress(3, 3)
    train(resumed, fresh, range(3, 6))
    for kept in ("current", "ema"):
        for name, tensor in weights.tensors(kept).items():
            assert torch.equal(tensor, resumed.tensors(kept)[name]), (kept, name)
    assert json.loads((path / "state.json").read_text()) == {"epoch": 3, "step": 3, "digest": "x"}


def test_only_the_latest_are_kept_and_order_is_by_number(tmp_path: Path) -> None:
    _, weights, optimizer = made(Full())
    for epoch in (9998, 9999, 10000):
        checkpoint.save(tmp_path, Progress(epoch, 0), weights, optimizer, keep=2, facts={})
    assert [c.name for c in checkpoints(tmp_path)] == ["epoch-9999", "epoch-10000"]


def test_an_unfinished_checkpoint_is_not_found_and_does_not_hinder(tmp_path: Path) -> None:
    _, weights, optimizer = made(Full())
    partial = tmp_path / ".writing-epoch-0001"
    partial.mkdir()
    (partial / "current.safetensors").write_bytes(b"cut sho")
    (tmp_path / "epoch-0002").mkdir()
    assert checkpoints(tmp_path) == []
    checkpoint.save(tmp_path, Progress(1, 1), weights, optimizer, keep=2, facts={})
    assert [c.name for c in checkpoints(tmp_path)] == ["epoch-0001"]
    assert not partial.exists()
