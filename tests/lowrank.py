"""LoRA of a tiny FLUX.1 as others write it, in several layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from flowfactory.policy import loras
from flowfactory.policy.kohya import to_kohya
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Lora
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG = LoraConfig(
    r=4,
    lora_alpha=6,
    target_modules=["transformer_blocks.0.attn.to_q", "attn.to_out.0", "ff.net.2"],
    rank_pattern={"to_out.0": 2},
    alpha_pattern={"to_out.0": 5},
)


def trained(pipe: DiffusionPipeline, config: LoraConfig = CONFIG) -> dict[str, Tensor]:
    """LoRA as the training scripts of diffusers make it, moved from where it starts."""
    network = pipe.transformer
    network.add_adapter(config)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(network.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 5)
    return get_peft_model_state_dict(network)


def written(folder: Path, checkpoint: Path, layout: str) -> Path:
    """The LoRA of `trained` in a layout; returns what `from` would name."""
    pipe = FluxPipeline.from_pretrained(checkpoint)
    state = trained(pipe)
    config = pipe.transformer.peft_config["default"]
    if layout == "diffusers":
        metadata = {"transformer_lora_adapter_metadata": config.to_dict()}
        FluxPipeline.save_lora_weights(folder, transformer_lora_layers=state, **metadata)
        return folder
    if layout == "diffusers without metadata":
        FluxPipeline.save_lora_weights(folder, transformer_lora_layers=scaled(state))
        return folder / "pytorch_lora_weights.safetensors"
    if layout == "kohya":
        base = FluxPipeline.from_pretrained(checkpoint).transformer
        save_file(to_kohya(base, scaled(state)), folder / "mine.safetensors")
        return folder / "mine.safetensors"
    if layout == "alphas":
        said = {f"transformer.{module}.alpha": torch.tensor(alpha) for module, alpha in alphas_of(state).items()}
        save_file({f"transformer.{key}": t for key, t in state.items()} | said, folder / "mine.safetensors")
        return folder / "mine.safetensors"
    save_file({f"base_model.model.{key}": t for key, t in state.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(folder)
    return folder


def alphas_of(state: dict[str, Tensor]) -> dict[str, float]:
    modules = [key.removesuffix(".lora_A.weight") for key in state if key.endswith("A.weight")]
    return {module: 5.0 if module.endswith("to_out.0") else 6.0 for module in modules}


def scaled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same LoRA with its scale multiplied in."""
    alphas = alphas_of(state)
    return {
        key: t * alphas[key.removesuffix(".lora_B.weight")] / t.shape[1] if key.endswith("B.weight") else t
        for key, t in state.items()
    }


def velocity(network: nn.Module) -> Tensor:
    """Of two samples: a single row may round otherwise by where weights lie in memory."""
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return network(  # type: ignore[no-any-return]
            hidden_states=torch.randn(2, 4, 64, generator=made)[..., : network.config.in_channels],  # type: ignore[union-attr]
            encoder_hidden_states=torch.randn(2, 3, network.config.joint_attention_dim, generator=made),  # type: ignore[union-attr]
            pooled_projections=torch.randn(2, network.config.pooled_projection_dim, generator=made),  # type: ignore[union-attr]
            timestep=torch.tensor([0.5, 0.5]),
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(3, 3),
            guidance=torch.tensor([3.5, 3.5]),
        )[0]


def loaded(pipe: Any, location: Path) -> tuple[nn.Module, Weights]:
    networks = {"transformer": pipe.transformer}
    given = loras.read(str(location), networks, pipe)
    return pipe.transformer, Weights(networks, Lora(from_="x"), [], [], 0, start=given)
