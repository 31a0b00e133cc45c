"""Small checkpoints of further text-to-image pipelines with random weights, each of its real classes."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from flowfactory.models.tiny import (
    LANGUAGE_MODEL,
    WIDTH,
    byte_tokenizer,
    clip_encoder,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
    vae,
)

ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
VISION = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
ATTENTION = {"num_attention_heads": 2, "attention_head_dim": 16}


def qwen_vl(spread: float = 0.02, **tokens: int) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL over bytes; what it writes depends on what it reads only where its weights have some `spread`."""
    text: dict[str, Any] = LANGUAGE_MODEL | {"rope_parameters": ROPE, "vocab_size": 259 + len(tokens)}
    text["initializer_range"] = spread
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=VISION, **tokens)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen_vae() -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def llama(layers: int = 2) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LANGUAGE_MODEL | {"num_hidden_layers": layers}))


def hidream() -> DiffusionPipeline:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    return diffusers.HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4),
        text_encoder=clip_encoder(clip, projection=True),
        tokenizer=clip,
        text_encoder_2=clip_encoder(clip, projection=True),
        tokenizer_2=clip,
        text_encoder_3=t5_encoder(t5),
        tokenizer_3=t5,
        text_encoder_4=llama(),
        tokenizer_4=byte_tokenizer(),
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 6, 6),
            max_resolution=(16, 16),
            llama_layers=(0, 1),
            **ATTENTION,
        ),
    )


def bria() -> DiffusionPipeline:
    tokenizer = t5_tokenizer()
    return diffusers.BriaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(4),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.BriaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=WIDTH,
            axes_dims_rope=[4, 6, 6],
            **ATTENTION,
        ),
    )


def hunyuan_image() -> DiffusionPipeline:
    guider = diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=5)
    return diffusers.HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32),
            layers_per_block=1,
            spatial_compression_ratio=4,
            sample_size=64,
            scaling_factor=0.5,
        ),
        text_encoder=qwen_vl(),
        tokenizer=byte_tokenizer(),
        text_encoder_2=transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=384, d_model=WIDTH, d_kv=16, d_ff=WIDTH, num_layers=1, num_heads=2)
        ),
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            guidance_embeds=False,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(8, 8),
            **ATTENTION,
        ),
        guider=guider,
        ocr_guider=guider,
    )


def kandinsky5_image() -> DiffusionPipeline:
    return diffusers.Kandinsky5T2IPipeline(vae=vae(16), **kandinsky5())


def kandinsky5() -> dict[str, Any]:
    """What the pipelines for images and for videos have in common."""
    clip = clip_tokenizer()
    return {
        "text_encoder": qwen_vl(),
        "tokenizer": byte_tokenizer(),
        "text_encoder_2": clip_encoder(clip),
        "tokenizer_2": clip,
        "transformer": diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=16,
            out_visual_dim=16,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=WIDTH,
            patch_size=(1, 2, 2),
            model_dim=WIDTH,
            ff_dim=WIDTH,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 6, 6),
            visual_cond=False,
            attention_type="regular",
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
    }


def longcat() -> DiffusionPipeline:
    return diffusers.LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(16),
        text_encoder=qwen_vl(spread=0.5),
        tokenizer=byte_tokenizer(),
        text_processor=byte_tokenizer(),
        transformer=diffusers.LongCatImageTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=[4, 6, 6],
            **ATTENTION,
        ),
    )


def ovis() -> DiffusionPipeline:
    return diffusers.OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(4),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**LANGUAGE_MODEL)),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.OvisImageTransformer2DModel(
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            **ATTENTION,
        ),
    )


def lumina() -> DiffusionPipeline:
    config = transformers.GemmaConfig(**LANGUAGE_MODEL)
    return diffusers.LuminaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(4),
        text_encoder=transformers.GemmaForCausalLM(config),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.LuminaNextDiT2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            learn_sigma=True,
            qk_norm=True,
            cross_attention_dim=WIDTH,
        ),
    )


def flux2_klein() -> DiffusionPipeline:
    layers = LANGUAGE_MODEL | {"num_hidden_layers": 27, "hidden_size": 16}
    return diffusers.Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
        ),
        text_encoder=transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**layers)),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=48,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
            **ATTENTION,
        ),
    )
