"""Streamed blocks compute what resident ones do, and never more than two are on the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from flowfactory.errors import RunError
from flowfactory.policy import streamed
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Lora
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

CPU = torch.device("cpu")
KINDS = [False, True]


@pytest.fixture(scope="module")
def network() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=False,
    )


class Counted(streamed.Stream):
    """Notes how many copies there are whenever one is made."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made: list[StorageWeakRef] = []
        self.most = 0

    def _begin(self, buffer: Tensor) -> streamed.Copy:
        made = super()._begin(buffer)
        self.made.append(StorageWeakRef(made.buffer.untyped_storage()))
        self.most = max(self.most, sum(not copy.expired() for copy in self.made))
        return made


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    made: list[Counted] = []

    def stream(*arguments: Any) -> Counted:
        made.append(Counted(*arguments))
        return made[-1]

    monkeypatch.setattr(streamed, "Stream", stream)
    return made


def lora(network: nn.Module, targets: tuple[str, ...] = ("to_q", "to_v", "linear_1")) -> Weights:
    weights = Weights({"transformer": network}, Lora(rank=2, alpha=2.0), targets, [], seed=0)
    for tensor in weights.parameters.values():
        tensor.data += 0.1
    return weights


def copied(network: nn.Module, checkpointing: bool) -> Any:
    made: Any = copy.deepcopy(network)
    if checkpointing:
        made.enable_gradient_checkpointing()
    return made


def asked(network: Any, seed: int = 1) -> Tensor:
    """Its answer to something."""
    torch.manual_seed(seed)
    said: Tensor = network(
        hidden_states=torch.randn(2, 6, 4),
        encoder_hidden_states=torch.randn(2, 3, 8),
        pooled_projections=torch.randn(2, 8),
        timestep=torch.rand(2),
        img_ids=torch.randn(6, 3),
        txt_ids=torch.randn(3, 3),
    ).sample
    return said


def gradients(network: Any, weights: Weights) -> list[Tensor]:
    """Of two answers, a further one without a gradient between them and their backward pass."""
    both = [asked(network, seed) for seed in (1, 2)]
    with torch.no_grad():
        both.append(asked(network, 3))
    sum(x.square().mean() for x in both).backward()
    return [p.grad for p in weights.parameters.values() if p.grad is not None]


@pytest.mark.parametrize("checkpointing", KINDS)
def test_gradients_are_those_of_resident_weights(
    network: nn.Module, streams: list[Counted], checkpointing: bool
) -> None:
    plain, ours = copied(network, checkpointing), copied(network, checkpointing)
    streamed.stream(ours, CPU, checkpointing)
    left, right = (gradients(each, lora(each)) for each in (plain, ours))
    assert len(left) == len(right) > 20
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    (stream,) = streams
    assert stream.most == 2
    assert len(stream.made) > 3 * len(stream.blocks)  # forwards, and again in the backward passes


def test_a_pass_copies_each_block_once_one_ahead(network: nn.Module, streams: list[Counted]) -> None:
    ours = copied(network, False)
    streamed.stream(ours, CPU, False)
    (stream,) = streams
    seen: list[int] = []
    for block in [*ours.transformer_blocks, *ours.single_transformer_blocks]:
        block.register_forward_hook(lambda *_: seen.append(len(stream.made)))
    with torch.no_grad():
        asked(ours)
        assert seen == [2, 3, 4, 5, 5]
        asked(ours)
    assert len(stream.made) == 2 * len(stream.blocks)


def test_weights_are_in_main_memory_but_while_their_block_computes(network: nn.Module, streams: list[Counted]) -> None:
    ours = copied(network, False)
    streamed.stream(ours, CPU, False)
    (stream,) = streams
    block, home = ours.transformer_blocks[1], stream.blocks[1]
    weight = block.attn.to_q.weight
    held: list[int] = []
    block.attn.register_forward_hook(lambda *_: held.append(block.attn.to_q.weight.untyped_storage().data_ptr()))
    with torch.no_grad():
        asked(ours)
    assert held[0] != home.buffer.data_ptr()
    assert block.attn.to_q.weight is weight
    assert weight.untyped_storage().data_ptr() == home.buffer.data_ptr()
    outside = next(ours.x_embedder.parameters()).data_ptr()
    assert all(outside != p.data_ptr() for block in stream.blocks for p in block.parameters)
    assert sum(p.numel() for block in stream.blocks for p in block.parameters) == sum(
        p.numel() for name, p in ours.named_parameters() if "transformer_blocks" in name
    )


@pytest.mark.parametrize("checkpointing", KINDS)
def test_nothing_is_kept_once_answers_are_gone(network: nn.Module, streams: list[Counted], checkpointing: bool) -> None:
    """A failed pass leaves weights where they were, too."""
    ours = copied(network, checkpointing)
    streamed.stream(ours, CPU, checkpointing)
    lora(ours)
    (stream,) = streams
    answer = asked(ours)
    del answer

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory is left")

    hook = ours.single_transformer_blocks[1].attn.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        asked(ours)
    hook.remove()
    homes = [(p, home.buffer) for home in stream.blocks for p in home.parameters]
    assert all(p.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr() for p, buffer in homes)
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None  # type: ignore[attr-defined]
    asked(ours)
    assert sum(not each.expired() for each in stream.made) <= 2


def test_what_a_recomputation_keeps_of_a_block_is_on_the_device(network: nn.Module, streams: list[Counted]) -> None:
    """Norms keep the very parameter for their backward pass, which comes when the block has its own ones again."""
    ours = copied(network, False)
    streamed.stream(ours, CPU, True)
    lora(ours)
    (stream,) = streams
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        asked(ours)
    homes = {home.buffer.untyped_storage().data_ptr() for home in stream.blocks}
    assert any(x.shape == ours.transformer_blocks[0].attn.norm_q.weight.shape for x in kept)
    assert not any(x.untyped_storage().data_ptr() in homes for x in kept)


def test_weights_from_elsewhere_take_the_place_of_streamed_ones(network: nn.Module, streams: list[Counted]) -> None:
    """As those of a teacher do while it is asked; what is kept for a backward pass meanwhile stays the network's."""
    plain, ours = copied(network, False), copied(network, False)
    streamed.stream(ours, CPU, False)
    answers = []
    for each in (plain, ours):
        weights = lora(each)
        before, weight = asked(each), each.transformer_blocks[1].attn.to_q.base_layer.weight
        own, weight.data = weight.data, torch.ones_like(weight.data)
        teacher = asked(each).detach()
        weight.data = own
        (before - teacher).square().mean().backward()
        answers.append([before.detach(), teacher, *(p.grad for p in weights.parameters.values() if p.grad is not None)])
    assert not torch.equal(answers[0][0], answers[0][1])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(RunError, match='"weights" are those of repeated blocks, and Linear has none'):
        streamed.stream(nn.Linear(2, 2), CPU, False)
