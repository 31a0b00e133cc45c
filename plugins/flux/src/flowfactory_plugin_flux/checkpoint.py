"""A FLUX.1 checkpoint with random weights: every class is the real one, every size is not."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from flowfactory.models.tiny import WIDTH, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer, vae


def tiny_flux(dev: bool = True, seed: int = 0) -> FluxPipeline:
    """With embedded guidance and a schedule that depends on the size, as dev has, or with neither, as schnell.

    A token stands for 16 x 16 pixels.
    """
    torch.manual_seed(seed)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if dev else 1.0, use_dynamic_shifting=dev, base_shift=0.5, max_shift=1.15
        ),
        vae=vae(4),
        text_encoder=clip_encoder(clip),
        tokenizer=clip,
        text_encoder_2=t5_encoder(t5),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=dev,
            axes_dims_rope=(4, 6, 6),
        ),
    )
