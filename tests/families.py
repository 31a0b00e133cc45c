"""Small checkpoints of many model families with random weights, each of its real classes, written without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import diffusers
import torch
import transformers
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from flowfactory.contracts.key import Size
from flowfactory.models.tiny import (
    LANGUAGE_MODEL,
    WIDTH,
    byte_tokenizer,
    clip_encoder,
    clip_tokenizer,
    stable_diffusion_3,
    t5_encoder,
    t5_tokenizer,
    umt5_encoder,
    vae,
)
from flowfactory_plugin_flux.checkpoint import tiny_flux
from flowfactory_plugin_qwen_image.checkpoint import tiny_qwen_image, tiny_qwen_image_edit
from flowfactory_plugin_wan.checkpoint import tiny_wan


@attrs.frozen
class Family:
    """One family.

    size: a small one. guidance: for the adapter. arguments: how a user says the same to the pipeline.
    max_sequence_length: for the adapter and the user, where the default would be slow or too short for byte tokens.
    trained: which part of the latents that are stepped is trained, if there are others.
    image: how many condition images a row comes with. shapes: width and height of those of two rows.
    asks: the form that prompts have to have.
    """

    make: Callable[[], DiffusionPipeline]
    size: Size
    guidance: float
    arguments: dict[str, Any]
    max_sequence_length: int | None = None
    true_cfg: float = 1.0
    image: int = 0
    shapes: tuple[tuple[int, int], tuple[int, int]] = ((48, 32), (20, 40))
    trained: Callable[[torch.Tensor], torch.Tensor] = lambda stepped: stepped
    asks: Callable[[str], str] = str


@torch.no_grad()
def loud(network: torch.nn.Module) -> None:
    """Give weights that begin at zero, as gates do, other values: else whole layers would not be compared."""
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.1)


def chroma() -> DiffusionPipeline:
    tokenizer = t5_tokenizer()
    return diffusers.ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(4),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=WIDTH,
            approximator_layers=1,
        ),
    )


def flux_kontext() -> DiffusionPipeline:
    parts = {name: part for name, part in tiny_flux().components.items() if part is not None}
    return diffusers.FluxKontextPipeline(**parts)


def z_image() -> DiffusionPipeline:
    transformer = diffusers.ZImageTransformer2DModel(
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return diffusers.ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**LANGUAGE_MODEL)),
        tokenizer=byte_tokenizer(),
        transformer=transformer,
    )


def aura_flow() -> DiffusionPipeline:
    tokenizer = t5_tokenizer()
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5_encoder(len(tokenizer)),
        vae=vae(4),
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=8,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=WIDTH,
            pos_embed_max_size=64,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def gemma() -> transformers.Gemma2Model:
    return transformers.Gemma2Model(transformers.Gemma2Config(**LANGUAGE_MODEL))


def lumina2() -> DiffusionPipeline:
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            cap_feat_dim=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(4),
        text_encoder=gemma(),
        tokenizer=byte_tokenizer(),
    )


def ltx() -> DiffusionPipeline:
    tokenizer = t5_tokenizer()
    return diffusers.LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
        ),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
        ),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=WIDTH,
            num_layers=2,
            caption_channels=WIDTH,
        ),
    )


def hunyuan_video() -> DiffusionPipeline:
    clip = clip_tokenizer()
    return diffusers.HunyuanVideoPipeline(
        text_encoder=transformers.LlamaModel(transformers.LlamaConfig(**LANGUAGE_MODEL | {"num_hidden_layers": 4})),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip_encoder(clip),
        tokenizer_2=clip,
    )


def cogview4() -> DiffusionPipeline:
    return diffusers.CogView4Pipeline(
        tokenizer=byte_tokenizer("left"),
        text_encoder=transformers.GlmModel(transformers.GlmConfig(**LANGUAGE_MODEL)),
        vae=vae(4),
        transformer=diffusers.CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=WIDTH,
            condition_dim=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
        ),
    )


def sana() -> DiffusionPipeline:
    return diffusers.SanaPipeline(
        tokenizer=byte_tokenizer(),
        text_encoder=gemma(),
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
        ),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
            sample_size=16,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
        ),
    )


def krea2() -> DiffusionPipeline:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_theta": 5e6}
    return diffusers.Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        text_encoder=transformers.Qwen3VLModel(
            transformers.Qwen3VLConfig(
                text_config=LANGUAGE_MODEL | {"rope_parameters": rope},
                vision_config={
                    "depth": 1,
                    "hidden_size": WIDTH,
                    "intermediate_size": WIDTH,
                    "num_heads": 2,
                    "out_hidden_size": WIDTH,
                    "num_position_embeddings": 16,
                    "deepstack_visual_indexes": [0],
                },
            )
        ),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=64,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=WIDTH,
            timestep_embed_dim=16,
            text_hidden_dim=WIDTH,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=WIDTH,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2),
    )


def flux2() -> DiffusionPipeline:
    return diffusers.Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
        ),
        text_encoder=transformers.Mistral3ForConditionalGeneration(
            transformers.Mistral3Config(
                text_config=LANGUAGE_MODEL | {"model_type": "mistral", "hidden_size": 16, "num_hidden_layers": 30},
                vision_config={
                    "model_type": "pixtral",
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 1,
                    "head_dim": 16,
                },
            )
        ),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 4, 4, 4),
        ),
    )


IMAGE, VIDEO = Size(32, 48), Size(32, 48, 5)

FAMILIES = {
    "flux": Family(tiny_flux, IMAGE, 3.5, {"guidance_scale": 3.5}, 32),
    "flux-true-cfg": Family(tiny_flux, IMAGE, 3.5, {"guidance_scale": 3.5, "true_cfg_scale": 4.0}, 32, 4.0),
    "flux-kontext": Family(flux_kontext, IMAGE, 3.5, {"guidance_scale": 3.5, "max_area": 32 * 48}, 32, image=1),
    "sd3": Family(stable_diffusion_3, IMAGE, 4.5, {"guidance_scale": 4.5}, 32),
    "qwen-image": Family(tiny_qwen_image, IMAGE, 4.0, {"true_cfg_scale": 4.0}),
    "qwen-image-edit": Family(tiny_qwen_image_edit, IMAGE, 4.0, {"true_cfg_scale": 4.0}, image=1),
    "wan": Family(tiny_wan, VIDEO, 5.0, {"guidance_scale": 5.0}, 32),
    "wan-2.2": Family(lambda: tiny_wan(2), VIDEO, 5.0, {"guidance_scale": 5.0}, 32),
    "wan-ti2v": Family(lambda: tiny_wan(expand_timesteps=True), VIDEO, 5.0, {"guidance_scale": 5.0}, 32),
    "z-image": Family(z_image, IMAGE, 4.0, {"guidance_scale": 4.0}, 64),
    "aura-flow": Family(aura_flow, IMAGE, 3.5, {"guidance_scale": 3.5}, 32),
    "lumina-2": Family(lumina2, IMAGE, 4.0, {"guidance_scale": 4.0}),
    "ltx": Family(ltx, Size(64, 96, 9), 3.0, {"guidance_scale": 3.0}, 32),
    "hunyuan-video": Family(hunyuan_video, VIDEO, 6.0, {"guidance_scale": 6.0}, 600),
    "chroma": Family(chroma, IMAGE, 5.0, {"guidance_scale": 5.0}, 32),
    "cogview-4": Family(cogview4, IMAGE, 5.0, {"guidance_scale": 5.0}, 64),
    "sana": Family(sana, Size(32, 64), 4.5, {"guidance_scale": 4.5, "use_resolution_binning": False}, 32),
    "krea-2": Family(krea2, IMAGE, 4.5, {"guidance_scale": 4.5}, 256),
    "flux-2": Family(flux2, IMAGE, 4.0, {"guidance_scale": 4.0}),
}
