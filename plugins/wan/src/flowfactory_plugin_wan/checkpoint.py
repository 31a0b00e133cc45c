"""Wan checkpoints with random weights: every class is the real one, every size is not."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from flowfactory.models.tiny import WIDTH, t5_tokenizer, umt5_encoder
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel


def tiny_wan(experts: int = 1, expand_timesteps: bool = False, flow_shift: float = 3.0, seed: int = 0) -> WanPipeline:
    """Text to video. One expert as in Wan 2.1, or two as in 2.2; expanded timesteps as in TI2V-5B."""
    torch.manual_seed(seed)
    return WanPipeline(
        **_parts(flow_shift),
        **_experts(experts),
        boundary_ratio=0.875 if experts == 2 else None,
        expand_timesteps=expand_timesteps,
    )


def tiny_wan_i2v(experts: int = 1, seed: int = 0, last: bool = False) -> WanImageToVideoPipeline:
    """Image to video. Wan 2.1 also sees the image through CLIP; the two experts of 2.2 do not.

    last: like the checkpoint of 2.1 that takes a first and a last frame.
    """
    torch.manual_seed(seed)
    eye: dict[str, Any] = {}
    if experts == 1:
        config = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
        shape = {"height": 32, "width": 32}
        eye = {
            "image_encoder": CLIPVisionModel(config),
            "image_processor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=shape),
        }
    image_dim = WIDTH if experts == 1 else None
    channels: dict[str, Any] = {"in_channels": 16 + 4 + 16, "image_dim": image_dim, "added_kv_proj_dim": image_dim}
    if last:
        channels["pos_embed_seq_len"] = 2 * 5
    return WanImageToVideoPipeline(
        **_parts(3.0), **_experts(experts, **channels), **eye, boundary_ratio=0.9 if experts == 2 else None
    )


def _parts(flow_shift: float) -> dict[str, Any]:
    """What all have."""
    tokenizer = t5_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": umt5_encoder(len(tokenizer)),
        "vae": AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift
        ),
    }


def _experts(count: int, in_channels: int = 16, **channels: Any) -> dict[str, WanTransformer3DModel | None]:
    """One transformer or two; a token stands for 2 x 2 pixels of a latent frame."""
    made = [
        WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=in_channels,
            out_channels=16,
            text_dim=WIDTH,
            ffn_dim=WIDTH,
            num_layers=2,
            rope_max_seq_len=32,
            **channels,
        )
        for _ in range(count)
    ]
    return {"transformer": made[0], "transformer_2": made[1] if count == 2 else None}
