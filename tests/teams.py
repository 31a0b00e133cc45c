"""What a team computes is what one process does: run by two processes that know of each other already."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    LTXVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    WanTransformer3DModel,
)
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Row
from flowfactory.errors import RunError
from flowfactory.processes.context import Team, Uneven
from flowfactory.spec.tables import Memory
from flowfactory_plugin_qwen_image import QwenImageSpec
from flowfactory_plugin_qwen_image.checkpoint import tiny_qwen_image
from flowfactory_plugin_qwen_image.qwen_image import QwenImage
from peft import LoraConfig
from torch import Tensor, nn

ROUNDED = 2e-6
"""In float32, of the largest number: attention adds up in another order."""
COARSE = 2.0**-7
"""Likewise in bfloat16, which has 8 bits."""

Inputs = dict[str, Any]


def wan(frames: int = 3) -> tuple[nn.Module, Inputs, str]:
    network = WanTransformer3DModel(
        **{"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 8},
        **{"ffn_dim": 16, "num_layers": 2, "freq_dim": 16, "rope_max_seq_len": 32},
    )
    levels = torch.tensor([500.0, 300.0])
    return network, {"timestep": levels, "encoder_hidden_states": noise(2, 7, 8)}, f"4,{frames},4,6"


def flux() -> tuple[nn.Module, Inputs, str]:
    network = FluxTransformer2DModel(
        **{"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16},
        **{"num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (4, 6, 6)},
    )
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0))
    text = {"encoder_hidden_states": noise(2, 8, 8), "pooled_projections": noise(2, 8), "txt_ids": torch.zeros(8, 3)}
    return network, {"timestep": torch.tensor([0.5, 0.3]), "img_ids": places, **text}, "6,4"


def qwen(length: int = 7, lengths: tuple[int, int] = (7, 4)) -> tuple[nn.Module, Inputs, str]:
    """Prompts of lengths of their own, and as many tokens as two processes cannot divide."""
    network = QwenImageTransformer2DModel(
        **{"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 8},
        **{"in_channels": 4, "out_channels": 1, "axes_dims_rope": (4, 6, 6)},
    )
    text: Inputs = {"encoder_hidden_states": noise(2, length, 8)}
    if min(lengths) < length:
        text["encoder_hidden_states_mask"] = torch.arange(length) < torch.tensor(lengths)[:, None]
    return network, {"timestep": torch.tensor([0.5, 0.3]), "img_shapes": [[(1, 2, 3)]] * 2, **text}, "6,4"


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def made(make: Callable[[], tuple[nn.Module, Inputs, str]]) -> tuple[nn.Module, Inputs, Tensor]:
    """A network whose weights are all trained, those of a LoRA among them; what it is asked beside latents; latents."""
    torch.manual_seed(0)
    network, inputs, shape = make()
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "proj_out"], init_lora_weights=False))
    return network.requires_grad_(True), inputs, noise(2, *map(int, shape.split(",")))


def asked(network: nn.Module, inputs: Inputs, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The velocity of a second step, and the gradients of the latents and of the weights through both."""
    network.zero_grad()
    x = x.clone().requires_grad_(True)
    first = network(hidden_states=x, **inputs, return_dict=False)[0]
    second = network(hidden_states=x - first / 2, **inputs, return_dict=False)[0]
    (second.square() * noise(*second.shape)).sum().backward()
    assert x.grad is not None
    return second.detach(), x.grad, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def summed(tensor: Tensor) -> Tensor:
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total


def near(ours: Tensor, theirs: Tensor, bound: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound * float(theirs.abs().max()))


def compare(team: Team, make: Callable[[], tuple[nn.Module, Inputs, str]], recompute: bool, attention: str) -> None:
    one, inputs, x = made(make)
    both = copy.deepcopy(one)
    both.set_attention_backend(attention)
    if recompute:
        both.enable_gradient_checkpointing()
    team.divide(both)
    v, gradient, gradients = asked(one, inputs, x)
    own, own_gradient, own_gradients = asked(both, inputs, x)
    near(own, v, ROUNDED)
    assert float((own_gradient - gradient).abs().max()) > 1e-3  # of the process's own tokens alone, where they go in
    alone = {name: g.clone() for name, g in own_gradients.items()}
    assert own_gradients.keys() == gradients.keys()
    for name, expected in gradients.items():
        near(summed(own_gradients[name]), expected, 5 * ROUNDED)
    assert any(float((alone[name] - g).abs().max()) > 1e-3 for name, g in gradients.items())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        v, own = (network(hidden_states=x, **inputs, return_dict=False)[0].float() for network in (one, both))
    near(own, v, COARSE)


def through_its_pipeline(team: Team) -> None:
    """Qwen-Image as its adapter calls it, with guidance, and with prompts of an odd number of tokens."""
    adapter = QwenImage(QwenImageSpec(path="made here"))
    adapter.adopt(tiny_qwen_image(), torch.device("cpu"), torch.float32)
    size = Size(32, 32)
    conditions = adapter.encode([Row("a cat"), Row("two dogs that bark")])
    (network,) = adapter.networks().values()
    lengths: list[int] = []
    seen = network.register_forward_pre_hook(
        lambda _, args, named: lengths.append(named["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    x = noise(2, *adapter.latent_shape(size))

    def velocity() -> Tensor:
        return adapter.velocity(x, torch.tensor([0.5, 0.3]), conditions, 3.0, size)

    with torch.no_grad():
        alone = velocity()
        seen.remove()
        assert any(length % 2 for length in lengths), lengths
        team.divide(network)
        near(velocity(), alone, ROUNDED)


def refuses(team: Team) -> None:
    """What cannot be computed by a team is told as a network is divided, or as it is called."""
    masks_of_all_heads = LTXVideoTransformer3DModel(
        **{"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32},
        **{"in_channels": 4, "out_channels": 4, "caption_channels": 8},
    )
    for network in (masks_of_all_heads, nn.Linear(2, 2)):
        with pytest.raises(RunError, match=f"tokens of {type(network).__name__} cannot be divided among processes"):
            team.divide(network)
    three = WanTransformer3DModel(num_attention_heads=3, attention_head_dim=16, num_layers=1, ffn_dim=8, text_dim=8)
    with pytest.raises(RunError, match="ulysses = 2 does not divide the 3 attention heads of WanTransformer3DModel"):
        team.divide(three)
    inputs: Mapping[str, Any]
    network, inputs, x = made(wan)
    team.divide(network)
    with pytest.raises(Uneven, match="does not divide the tokens of a sample"), team.evenly():
        network(hidden_states=x[:, :, :, :2, :6][:, :, :1], **inputs)  # 3 tokens


def flash_on_cpu() -> torch.library.Library:
    """Torch's flash attention, by the names that it has on GPUs: what a ring needs of attention."""
    aten, none = torch.ops.aten, torch.empty(0)

    def forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any, scale: float | None = None) -> tuple[Any, ...]:
        out = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, *rest[:2], scale=scale)
        return *out, none, none, query.shape[2], key.shape[2], none, none, none

    def backward(*given: Any, scale: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        tensors, (dropout, causal) = given[:6], given[10:12]
        own: tuple[Tensor, Tensor, Tensor] = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *tensors, dropout, causal, scale=scale
        )
        return own

    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_scaled_dot_product_flash_attention", forward)
    library.impl("_scaled_dot_product_flash_attention_backward", backward)
    return library


def publicly(team: Team) -> None:
    """As on a machine with an accelerator, by what diffusers offers for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "is_available", lambda: True)
        patch.setattr(torch.accelerator, "device_count", lambda: 2)
        compare(team, wan, recompute=False, attention="native")


def check() -> None:
    """In each of two processes that know of each other already."""
    rank = torch.distributed.get_rank()
    team = Team.of(rank, 2, Memory(ulysses=2), "cpu")
    assert (team.number, team.count, team.size, team.leads) == (0, 1, 2, rank == 0)
    assert [team.any(rank == 1, torch.device("cpu")), team.any(False, torch.device("cpu"))] == [True, False]
    compare(team, wan, recompute=False, attention="native")
    compare(team, flux, recompute=True, attention="native")
    compare(team, qwen, recompute=True, attention="native")
    compare(team, lambda: qwen(7, (7, 7)), recompute=False, attention="native")  # without a mask
    through_its_pipeline(team)
    publicly(team)
    ring, library = Team.of(rank, 2, Memory(ring=2), "cpu"), flash_on_cpu()
    compare(ring, wan, recompute=True, attention="_native_flash")
    compare(ring, flux, recompute=False, attention="_native_flash")
    library._destroy()
    with pytest.raises(RunError, match="QwenImageTransformer2DModel have masks, which no ring divides"):
        ring.divide(qwen()[0])
    refuses(team)
