"""Small checkpoints of further text-to-video pipelines with random weights, each of its real classes."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from flowfactory.models.tiny import (
    LANGUAGE_MODEL,
    WIDTH,
    byte_tokenizer,
    t5_encoder,
    t5_tokenizer,
    umt5_encoder,
)
from other_images import ATTENTION, kandinsky5, qwen_vl


def wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)


def wan_like() -> dict[str, Any]:
    """What Wan and its relations have in common."""
    tokenizer = t5_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": umt5_encoder(len(tokenizer)),
        "vae": wan_vae(),
        "scheduler": unipc(),
    }


def wan_network(kind: type[Any], **sizes: Any) -> Any:
    return kind(
        in_channels=16, out_channels=16, text_dim=WIDTH, ffn_dim=WIDTH, rope_max_seq_len=32, **ATTENTION, **sizes
    )


def wan_vace() -> DiffusionPipeline:
    network = wan_network(diffusers.WanVACETransformer3DModel, num_layers=2, vace_layers=[0, 1], vace_in_channels=96)
    return diffusers.WanVACEPipeline(transformer=network, transformer_2=None, **wan_like())


def sky_reels() -> DiffusionPipeline:
    network = wan_network(diffusers.SkyReelsV2Transformer3DModel, num_layers=2)
    return diffusers.SkyReelsV2Pipeline(transformer=network, **wan_like())


def sky_reels_forcing() -> DiffusionPipeline:
    network = wan_network(diffusers.SkyReelsV2Transformer3DModel, num_layers=2, inject_sample_info=True)
    return diffusers.SkyReelsV2DiffusionForcingPipeline(transformer=network, **wan_like())


def mochi() -> DiffusionPipeline:
    tokenizer = t5_tokenizer()
    return diffusers.MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLMochi(
            latent_channels=12,
            out_channels=3,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=diffusers.MochiTransformer3DModel(
            patch_size=2,
            num_layers=2,
            pooled_projection_dim=WIDTH,
            in_channels=12,
            text_embed_dim=WIDTH,
            time_embed_dim=4,
            max_sequence_length=32,
            **ATTENTION,
        ),
    )


def sana_video() -> DiffusionPipeline:
    return diffusers.SanaVideoPipeline(
        tokenizer=byte_tokenizer(),
        text_encoder=transformers.Gemma2Model(transformers.Gemma2Config(**LANGUAGE_MODEL)),
        vae=wan_vae(),
        transformer=diffusers.SanaVideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=WIDTH,
            caption_channels=WIDTH,
            sample_size=8,
            patch_size=(1, 2, 2),
            rope_max_seq_len=32,
            qk_norm="rms_norm_across_heads",
            **ATTENTION,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0, algorithm_type="dpmsolver++"
        ),
    )


def kandinsky5_video() -> DiffusionPipeline:
    video = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return diffusers.Kandinsky5T2VPipeline(vae=video, **kandinsky5())


def hunyuan_video_15() -> DiffusionPipeline:
    text: dict[str, Any] = qwen_vl().config.text_config.to_dict()
    return diffusers.HunyuanVideo15Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=diffusers.AutoencoderKLHunyuanVideo15(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(16, 16),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
            downsample_match_channel=False,
            upsample_match_channel=False,
        ),
        text_encoder=transformers.Qwen2_5_VLTextModel(transformers.Qwen2_5_VLTextConfig(**text)),
        tokenizer=byte_tokenizer(),
        text_encoder_2=transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=384, d_model=WIDTH, d_kv=16, d_ff=WIDTH, num_layers=1, num_heads=2)
        ),
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            image_embed_dim=12,
            rope_axes_dim=(4, 6, 6),
            target_size=16,
            task_type="t2v",
            **ATTENTION,
        ),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.5),
    )
