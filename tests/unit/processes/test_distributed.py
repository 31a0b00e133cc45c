"""What processes do together, in a world of two that are one: whatever is added up, doubles."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from flowfactory.cli.verbs.options import load_libraries
from flowfactory.contracts.specs import Needs
from flowfactory.errors import RunError
from flowfactory.processes.context import Team
from flowfactory.processes.distributed import PeerLost, Processes, numbered, together
from flowfactory.training.networks import made_weights
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.mark.parametrize(
    ("device", "number"), [("cpu", "cpu"), ("cuda:2", "cuda:2"), ("cuda", "cuda:1"), (torch.device("xpu"), "xpu:1")]
)
def test_a_device_has_its_number(device: str | torch.device, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it `torch.cuda.set_device` refuses it, and no tensor's device is equal to it."""
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    assert numbered(device) == torch.device(number)


def test_where_a_run_computes_has_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes("fp32")
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    monkeypatch.setattr(processes, "accelerator", SimpleNamespace(device=torch.device("cuda")))
    assert processes.device == torch.device("cuda:1")


def test_attention_of_cudnn_is_only_for_those_who_ask() -> None:
    """Its backward pass failed on an H200 for FLUX, and gives NaN for some lengths (pytorch/pytorch#196678)."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    Processes("fp32")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):  # as diffusers' `_native_cudnn` asks
        assert torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


class Twins(Processes):
    """Two processes that always have the same."""

    world = 2  # type: ignore[assignment]
    device = torch.device("cpu")  # type: ignore[assignment]

    def __init__(self) -> None:
        self.accelerator, self._mesh, self.team = self, None, Team(0, 2, True, None)

    def end_training(self) -> None:
        """Nothing is open."""

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


def test_experts_that_are_called_by_turns_are_not_divided_for_a_trainer_that_draws_noise_levels() -> None:
    """Each process would call another of them, and wait for ever."""

    def weights(trajectory: str) -> None:
        spec = SimpleNamespace(trainer=SimpleNamespace(name="nft"))
        adapter = SimpleNamespace(networks=lambda: {"high": nn.Linear(1, 1), "low": nn.Linear(1, 1)})
        trainer = SimpleNamespace(needs=Needs(trajectory=trajectory))  # type: ignore[arg-type]
        made_weights(spec, adapter, trainer, Sharded(), None, {})  # type: ignore[arg-type]

    class Sharded(Twins):
        sharded, main = True, True  # type: ignore[assignment]

    with pytest.raises(RunError, match=r"trainer `nft` draws its own noise levels.* high and low at a time"):
        weights("final")
    with pytest.raises(AttributeError, match="optimizer"):  # it went on to the spec, which here has nothing more
        weights("steps")


def test_how_attention_is_computed_is_not_left_to_variables_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "zzz")  # its import would fail
    load_libraries()
    assert "DIFFUSERS_ATTN_BACKEND" not in os.environ


def test_only_what_comes_from_other_processes_is_put_down_to_them() -> None:
    with pytest.raises(PeerLost), together():
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer")
    with pytest.raises(PeerLost), together():
        raise torch.distributed.DistNetworkError("the other side is gone")
    with pytest.raises(torch.OutOfMemoryError), together():
        raise torch.OutOfMemoryError("CUDA out of memory")
