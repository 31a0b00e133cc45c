"""Families that are measured on demand only, each of its real classes, and how a class is made of another's parts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from families import FAMILIES, IMAGE, VIDEO, Family
from flowfactory.contracts.key import Size
from flowfactory.models.tiny import LANGUAGE_MODEL, WIDTH, byte_tokenizer
from flowfactory_plugin_wan.checkpoint import tiny_wan_i2v
from other_edits import joy_image, qwen3_vl
from other_images import ATTENTION, VISION, kandinsky5_image


def of_parts(name: str, make: Callable[[], DiffusionPipeline], **others: Any) -> DiffusionPipeline:
    """A pipeline of class `name` out of the parts of another."""
    kind: Any = getattr(diffusers, name)
    parts = {part: value for part, value in make().components.items() if value is not None}
    return kind(**parts | others)


def ernie() -> DiffusionPipeline:
    vision = VISION | {"model_type": "pixtral", "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    text = LANGUAGE_MODEL | {"model_type": "mistral"}
    return diffusers.ErnieImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
        ),
        text_encoder=transformers.Mistral3Model(transformers.Mistral3Config(text_config=text, vision_config=vision)),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.ErnieImageTransformer2DModel(
            hidden_size=WIDTH,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=WIDTH,
            in_channels=16,
            out_channels=16,
            text_in_dim=WIDTH,
            rope_axes_dim=(4, 6, 6),
        ),
    )


def qwen_image_21() -> DiffusionPipeline:
    encoder, processor = qwen3_vl()
    return diffusers.QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1] * 16,
            latents_std=[1.5] * 16,
        ),
        text_encoder=encoder,
        processor=processor,
        transformer=diffusers.QwenImage21Transformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=2,
            context_in_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            **ATTENTION,
        ),
    )


def prx_pixel() -> DiffusionPipeline:
    return diffusers.PRXPixelPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**LANGUAGE_MODEL)),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.PRXTransformer2DModel(
            in_channels=3,
            patch_size=8,
            context_in_dim=WIDTH,
            hidden_size=WIDTH,
            num_heads=2,
            depth=2,
            axes_dim=[8, 8],
            bottleneck_size=16,
            resolution_embeds=True,
        ),
        prompt_max_tokens=32,
    )


FROM_AN_IMAGE: dict[str, Any] = {
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": WIDTH,
    "ffn_dim": WIDTH,
    "num_layers": 2,
    "rope_max_seq_len": 32,
    "image_dim": WIDTH,
    "added_kv_proj_dim": WIDTH,
    **ATTENTION,
}
"""Wan's network, and those made after it, with an image to begin with."""


def chrono_edit() -> DiffusionPipeline:
    network = diffusers.ChronoEditTransformer3DModel(**FROM_AN_IMAGE)
    return of_parts("ChronoEditPipeline", tiny_wan_i2v, transformer=network)


def sky_reels_i2v() -> DiffusionPipeline:
    network = diffusers.SkyReelsV2Transformer3DModel(**FROM_AN_IMAGE)
    return of_parts("SkyReelsV2ImageToVideoPipeline", tiny_wan_i2v, transformer=network)


_CFG = {"guidance_scale": 5.0}

RARE = {
    "chronoedit": Family(chrono_edit, VIDEO, 5.0, _CFG, 512, image=1),
    "ernie-image": Family(ernie, IMAGE, 5.0, _CFG),
    "joyimage-edit-plus": Family(functools.partial(joy_image, plus=True), IMAGE, 5.0, _CFG),
    "kandinsky-5-image": Family(kandinsky5_image, IMAGE, 5.0, _CFG, 900),
    "prx-pixel": Family(prx_pixel, Size(32, 64), 5.0, {**_CFG, "use_resolution_binning": False}),
    "qwen-image-2.1": Family(qwen_image_21, Size(64, 96), 4.0, {"true_cfg_scale": 4.0}),
    "sana-pag": Family(
        functools.partial(of_parts, "SanaPAGPipeline", FAMILIES["sana"].make),
        Size(32, 64),
        4.5,
        {"guidance_scale": 4.5, "use_resolution_binning": False},
        32,
    ),
    "sd3-pag": Family(
        functools.partial(of_parts, "StableDiffusion3PAGPipeline", FAMILIES["sd3"].make), IMAGE, 5.0, _CFG, 32
    ),
    "skyreels-v2-i2v": Family(sky_reels_i2v, VIDEO, 5.0, _CFG, 512, image=1),
    "wan-2.1-i2v": Family(tiny_wan_i2v, VIDEO, 5.0, _CFG, 512, image=1),
    "wan-2.2-i2v": Family(functools.partial(tiny_wan_i2v, 2), VIDEO, 5.0, _CFG, 32, image=1),
}
"""Each with a size, a guidance, and how a user says that."""
