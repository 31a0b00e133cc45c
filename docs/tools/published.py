"""The networks of published checkpoints by their configs, without weights: what `plan` counts. Imports torch.

The numbers are meant to be those of each checkpoint's own `config.json`, transcribed by hand and not compared with the
hub's; what a class has by default is left out.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from flowfactory.plan.checkpoint import Part

CLIP_L: Mapping[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
    "projection_dim": 768, "vocab_size": 49408,
}  # fmt: skip
CLIP_G = {
    **CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
    "projection_dim": 1280,
}  # fmt: skip
T5: Mapping[str, Any] = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
VAE: Mapping[str, Any] = {
    "block_out_channels": [128, 256, 512, 512], "latent_channels": 16, "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
QWEN: Mapping[str, Any] = {
    "text_config": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    },
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "patch_size": 14,
    },
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA: Mapping[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "vocab_size": 128320,
}  # fmt: skip
SD3: Mapping[str, Any] = {
    "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "in_channels": 16, "out_channels": 16,
    "sample_size": 128,
}  # fmt: skip
SD35 = {**SD3, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))}
SD3_PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "text_encoder": ("transformers.CLIPTextModelWithProjection", CLIP_L),
    "text_encoder_2": ("transformers.CLIPTextModelWithProjection", CLIP_G),
    "text_encoder_3": ("transformers.T5EncoderModel", T5),
    "vae": ("diffusers.AutoencoderKL", VAE),
}
FLUX_PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "text_encoder": ("transformers.CLIPTextModel", CLIP_L),
    "text_encoder_2": ("transformers.T5EncoderModel", T5),
    "vae": ("diffusers.AutoencoderKL", VAE),
    "transformer": ("diffusers.FluxTransformer2DModel", {"guidance_embeds": True}),
}
QWEN_PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "text_encoder": ("transformers.Qwen2_5_VLForConditionalGeneration", QWEN),
    "vae": ("diffusers.AutoencoderKLQwenImage", {}),
    "transformer": ("diffusers.QwenImageTransformer2DModel", {}),
}
WAN: Mapping[str, Any] = {"in_channels": 16, "out_channels": 16, "attention_head_dim": 128, "text_dim": 4096}
SMALL = {**WAN, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
LARGE = {**WAN, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
WAN_PARTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "text_encoder": ("transformers.UMT5EncoderModel", {**T5, "vocab_size": 256384}),
    "vae": ("diffusers.AutoencoderKLWan", {}),
}
CHECKPOINTS: Mapping[str, Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "black-forest-labs/FLUX.1-dev": FLUX_PARTS,
    "black-forest-labs/FLUX.1-Kontext-dev": FLUX_PARTS,
    "black-forest-labs/FLUX.1-schnell": {
        **FLUX_PARTS, "transformer": ("diffusers.FluxTransformer2DModel", {"guidance_embeds": False}),
    },
    "stabilityai/stable-diffusion-3-medium-diffusers": {
        **SD3_PARTS, "transformer": ("diffusers.SD3Transformer2DModel", {**SD3, "pos_embed_max_size": 192}),
    },
    "stabilityai/stable-diffusion-3.5-medium": {
        **SD3_PARTS, "transformer": ("diffusers.SD3Transformer2DModel", SD35),
    },
    "Qwen/Qwen-Image": QWEN_PARTS,
    "Qwen/Qwen-Image-Edit": QWEN_PARTS,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {**WAN_PARTS, "transformer": ("diffusers.WanTransformer3DModel", SMALL)},
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": {
        **WAN_PARTS, "transformer": ("diffusers.WanTransformer3DModel", LARGE),
        "transformer_2": ("diffusers.WanTransformer3DModel", LARGE),
    },
    "hunyuanvideo-community/HunyuanVideo": {
        "text_encoder": ("transformers.LlamaModel", LLAMA),
        "text_encoder_2": ("transformers.CLIPTextModel", CLIP_L),
        "vae": ("diffusers.AutoencoderKLHunyuanVideo", {}),
        "transformer": ("diffusers.HunyuanVideoTransformer3DModel", {}),
    },
}  # fmt: skip


def parts(checkpoint: str) -> dict[str, Part]:
    """Its models, as their configs have them."""
    return {name: _part(kind, json.dumps(config)) for name, (kind, config) in CHECKPOINTS[checkpoint].items()}


@cache
def _part(kind: str, config: str) -> Part:
    library, name = kind.split(".")
    made: Any = getattr(importlib.import_module(library), name)
    with torch.device("meta"):
        if library == "diffusers":
            model = made.from_config(json.loads(config))
            said = model.to_json_string()
        else:
            model = made(made.config_class(**json.loads(config)))
            said = model.config.to_json_string()
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    return Part(shapes, json.loads(said))
