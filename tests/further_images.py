"""Small checkpoints of the rest of diffusers' pipelines for images, with random weights, each of its real classes."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from flowfactory.models.tiny import LANGUAGE_MODEL, WIDTH, byte_tokenizer, vae
from other_edits import qwen3_vl
from other_images import ATTENTION, kandinsky5, qwen_vae
from rare_families import prx_pixel

DYNAMIC = {"use_dynamic_shifting": True}


def flux2_vae() -> diffusers.AutoencoderKLFlux2:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
    )


def deep_qwen3_vl(layers: int, width: int = WIDTH) -> tuple[Any, Any]:
    """As many layers as a pipeline takes its features from."""
    encoder, processor = qwen3_vl()
    config: Any = encoder.config
    text, rope = config.text_config, width // 2
    text.num_hidden_layers, text.hidden_size, text.head_dim = layers, width, rope
    text.rope_parameters["mrope_section"] = [rope // 2 - 2 * (rope // 6), rope // 6, rope // 6]
    config.vision_config.out_hidden_size = width
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def bria_fibo(edits: bool = False) -> DiffusionPipeline:
    language_model = LANGUAGE_MODEL | {"vocab_size": 128_256, "hidden_size": 16}
    return (diffusers.BriaFiboEditPipeline if edits else diffusers.BriaFiboPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            patch_size=2,
            in_channels=12,
            out_channels=12,
            is_residual=True,
            scale_factor_spatial=16,
        ),
        text_encoder=transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**language_model)),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.BriaFiboTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=32,
            text_encoder_dim=16,
            axes_dims_rope=[4, 6, 6],
            **ATTENTION,
        ),
    )


def bria_fibo_2() -> DiffusionPipeline:
    encoder, processor = deep_qwen3_vl(36, 16)
    return diffusers.BriaFibo2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=flux2_vae(),
        text_encoder=encoder,
        processor=processor,
        transformer=diffusers.BriaFibo2Transformer2DModel(
            in_channels=4,
            dim=WIDTH,
            n_layers=6,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=3 * 16,
            injection_layer_ids=(0, 1, 2, 3, 4),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=4,
            gist_min_text_len=4,
            gist_max_text_len=16,
            axes_dims=(4, 6, 6),
            axes_lens=(2048, 64, 64),
        ),
    )


def kandinsky5_conditioned() -> diffusers.Kandinsky5Transformer3DModel:
    """Its network with an image to begin with."""
    network = kandinsky5()["transformer"]
    sizes = {name: value for name, value in network.config.items() if not name.startswith("_")}
    return diffusers.Kandinsky5Transformer3DModel(**sizes | {"visual_cond": True})


def nucleus() -> DiffusionPipeline:
    """Its experts' weights are whatever lies in memory, until they are read or drawn."""
    encoder, processor = deep_qwen3_vl(8)
    network = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        num_experts=4,
        moe_intermediate_dim=16,
        dense_moe_strategy="leave_first_block_dense",
        capacity_factors=2.0,
        **ATTENTION,
    )
    for name, weight in network.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):
            torch.nn.init.normal_(weight, 0, 0.1)
    return diffusers.NucleusMoEImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=qwen_vae(),
        text_encoder=encoder,
        processor=processor,
        transformer=network,
    )


def prx() -> DiffusionPipeline:
    parts = prx_pixel().components
    network = diffusers.PRXTransformer2DModel(
        in_channels=16, patch_size=2, context_in_dim=WIDTH, hidden_size=WIDTH, num_heads=2, depth=2, axes_dim=[8, 8]
    )
    own = {name: parts[name] for name in ("scheduler", "text_encoder", "tokenizer")}
    return diffusers.PRXPipeline(**own, vae=vae(16), transformer=network)
