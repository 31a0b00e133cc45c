"""What autograd keeps of one forward pass at the sizes of published models: the numbers behind `estimate.KEPT`.

    python tests/benchmarks/activations.py

Nothing is allocated: the networks are fake tensors, which have shapes and no values. A row says how many values a layer
keeps for each token and unit of width, with LoRA on attention and with every weight trained; weights are not counted,
nor are their copies in bf16. Attention is counted as fused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from diffusers import (
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from flowfactory.policy.weights import lora_config
from flowfactory.spec.tables import Lora
from peft import inject_adapter_in_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

ATTENTION = [f"to_{name}" for name in ("q", "k", "v", "out.0", "add_out")] + [f"add_{n}_proj" for n in "qkv"]
FLUX = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]
QWEN = ["img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"]
SIDE, TEXT = 512, 512
TOKENS = (SIDE // 16) ** 2


@attrs.frozen
class Model:
    """A published network: how to make it, what it is called with, and what its activations are divided by."""

    make: Callable[[], nn.Module]
    inputs: Callable[[torch.dtype], Mapping[str, Any]]
    tokens: int
    width: int
    layers: int
    targets: list[str]


def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(1, *shape, dtype=dtype)


MODELS = {
    "FLUX.1-dev": Model(
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        lambda dtype: {
            "hidden_states": zeros(dtype, TOKENS, 64),
            "timestep": zeros(dtype).flatten(),
            "guidance": zeros(torch.float32).flatten(),
            "pooled_projections": zeros(dtype, 768),
            "encoder_hidden_states": zeros(dtype, TEXT, 4096),
            "txt_ids": torch.zeros(TEXT, 3, dtype=dtype),
            "img_ids": torch.zeros(TOKENS, 3, dtype=dtype),
        },
        TOKENS + TEXT, 3072, 57, ATTENTION + FLUX,
    ),
    "Qwen-Image": Model(
        QwenImageTransformer2DModel,
        lambda dtype: {
            "hidden_states": zeros(dtype, TOKENS, 64),
            "timestep": zeros(dtype).flatten(),
            "encoder_hidden_states": zeros(dtype, TEXT, 3584),
            "encoder_hidden_states_mask": torch.ones(1, TEXT, dtype=torch.long),
            "img_shapes": [[(1, SIDE // 16, SIDE // 16)]],
        },
        TOKENS + TEXT, 3072, 60, ATTENTION + QWEN,
    ),
    "Wan 2.1 14B": Model(
        WanTransformer3DModel,
        lambda dtype: {
            "hidden_states": zeros(dtype, 16, 5, SIDE // 8, SIDE // 8),
            "timestep": torch.ones(1),
            "encoder_hidden_states": zeros(dtype, TEXT, 4096),
        },
        5 * TOKENS, 5120, 40, ATTENTION,
    ),
    "SD3 medium": Model(
        lambda: SD3Transformer2DModel(
            sample_size=128, num_layers=24, num_attention_heads=24, pos_embed_max_size=192,
            joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
        ),
        lambda dtype: {
            "hidden_states": zeros(dtype, 16, SIDE // 8, SIDE // 8),
            "timestep": zeros(dtype).flatten(),
            "pooled_projections": zeros(dtype, 2048),
            "encoder_hidden_states": zeros(dtype, 333, 4096),
        },
        TOKENS + 333, 1536, 24, ATTENTION,
    ),
}  # fmt: skip


def network(model: Model, full: bool, dtype: torch.dtype) -> nn.Module:
    """The network on `meta`; trained weights are float32, as in a run."""
    with torch.device("meta"):
        made = model.make().to(dtype)
        if not full:
            made.requires_grad_(False)
            inject_adapter_in_model(lora_config(Lora(rank=64), model.targets), made)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return made


def fake(made: nn.Module) -> None:
    """Put fake tensors on the CPU, where attention is fused and autocast applies, in the place of those on `meta`."""
    for module in made.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, value in [*module._buffers.items(), *vars(module).items()]:
            if isinstance(value, Tensor):
                module.__dict__.pop(name, None)
                setattr(module, name, torch.empty(value.shape, dtype=value.dtype))


def kept(model: Model, full: bool, dtype: torch.dtype, checkpointing: bool) -> int:
    """Bytes."""
    made: Any = network(model, full, dtype)
    if checkpointing:
        made.enable_gradient_checkpointing()
    with FakeTensorMode():
        fake(made)
        weights = {tensor.untyped_storage()._cdata for tensor in (*made.parameters(), *made.buffers())}
        shapes = {shape for p in made.parameters() for shape in (tuple(p.shape), tuple(p.shape)[::-1])}
        found: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in weights and tuple(tensor.shape) not in shapes:
                found.setdefault(storage, tensor)
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            made(**model.inputs(dtype), return_dict=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def main() -> None:
    print("| model | | bf16 | float32 | bf16, checkpointing |\n|---|---|---|---|---|")
    for name, model in MODELS.items():
        for full in (False, True):
            unit = model.tokens * model.width * model.layers
            bf16, fp32, checkpointed = (
                kept(model, full, dtype, on) / unit / dtype.itemsize
                for dtype, on in ((torch.bfloat16, False), (torch.float32, False), (torch.bfloat16, True))
            )
            tuning = "full" if full else "LoRA"
            print(f"| {name} | {tuning} | {bf16:.1f} | {fp32:.1f} | {checkpointed:.2f} |", flush=True)


if __name__ == "__main__":
    main()
