"""Small checkpoints of the rest of diffusers' pipelines for videos, with random weights, each of its real classes."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.cosmos import (
    pipeline_cosmos2_5_predict,
    pipeline_cosmos2_text2image,
    pipeline_cosmos2_video2world,
    pipeline_cosmos_text2world,
    pipeline_cosmos_video2world,
)
from flowfactory.models.tiny import (
    LANGUAGE_MODEL,
    WIDTH,
    byte_tokenizer,
    t5_encoder,
    t5_tokenizer,
)
from further_images import kandinsky5_conditioned
from other_images import ATTENTION, qwen_vl
from other_videos import kandinsky5_video, sana_video, unipc, wan_vae
from rare_families import of_parts
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

COSMOS = (
    pipeline_cosmos2_5_predict,
    pipeline_cosmos2_text2image,
    pipeline_cosmos2_video2world,
    pipeline_cosmos_text2world,
    pipeline_cosmos_video2world,
)
EYE = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


class Guardrail:
    """In the place of a checker that is a package of its own: it lets everything pass."""

    def to(self, device: Any) -> Guardrail:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def guarded(name: str, scheduler: Any, **parts: Any) -> DiffusionPipeline:
    """A pipeline of Cosmos, which makes a checker itself when it is read."""
    pipe = getattr(diffusers, name)(scheduler=scheduler, safety_checker=Guardrail(), **parts)
    pipe.register_to_config(safety_checker=(None, None))
    return pipe  # type: ignore[no-any-return]


def cosmos_network(**sizes: Any) -> diffusers.CosmosTransformer3DModel:
    """Without its mask, which torchvision scales."""
    return diffusers.CosmosTransformer3DModel(
        out_channels=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
        **ATTENTION,
        **sizes,
    )


def cosmos_2(name: str) -> DiffusionPipeline:
    tokenizer = t5_tokenizer()
    return guarded(
        name,
        FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=wan_vae(),
        transformer=cosmos_network(in_channels=17 if "Video" in name else 16),
    )


def easy_animate() -> DiffusionPipeline:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    vision = {"depth": 1, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 1}
    config = transformers.Qwen2VLConfig(text_config=LANGUAGE_MODEL | {"rope_parameters": rope}, vision_config=vision)
    return diffusers.EasyAnimatePipeline(
        vae=diffusers.AutoencoderKLMagvit(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            spatial_group_norm=False,
            down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
            up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        ),
        text_encoder=transformers.Qwen2VLForConditionalGeneration(config),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.EasyAnimateTransformer3DModel(
            in_channels=4,
            out_channels=4,
            patch_size=2,
            sample_width=8,
            sample_height=8,
            num_layers=2,
            mmdit_layers=1,
            time_embed_dim=8,
            text_embed_dim=WIDTH,
            **ATTENTION,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def hunyuan_network(kind: Any, **sizes: Any) -> Any:
    own = {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "rope_axes_dim": (4, 6, 6),
    }
    return kind(**own | ATTENTION | sizes)


def eye() -> dict[str, Any]:
    return {
        "image_encoder": transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**EYE)),
        "feature_extractor": transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
    }


def kandinsky5_from_an_image() -> DiffusionPipeline:
    return of_parts("Kandinsky5I2VPipeline", kandinsky5_video, transformer=kandinsky5_conditioned())


def motif(name: str = "MotifVideoPipeline") -> DiffusionPipeline:
    config = transformers.T5Gemma2EncoderConfig(text_config=LANGUAGE_MODEL | {"dropout_rate": 0.0}, vision_config=EYE)
    pipeline: Any = getattr(diffusers, name)
    return pipeline(  # type: ignore[no-any-return]
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=wan_vae(),
        text_encoder=T5Gemma2Encoder(config),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.MotifVideoTransformer3DModel(
            num_layers=1,
            num_single_layers=1,
            text_embed_dim=WIDTH,
            image_embed_dim=WIDTH if "Image" in name else None,
            rope_axes_dim=(4, 6, 6),
            **ATTENTION,
        ),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0),
        feature_extractor=eye()["feature_extractor"],
    )


def sana_from_an_image() -> DiffusionPipeline:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=8.0)
    return of_parts("SanaImageToVideoPipeline", sana_video, scheduler=scheduler)


def cosmos_25() -> DiffusionPipeline:
    language = qwen_vl()
    return guarded(
        "Cosmos2_5_PredictBasePipeline",
        unipc(),
        tokenizer=byte_tokenizer(),
        text_encoder=language,
        vae=wan_vae(),
        transformer=cosmos_network(
            in_channels=17,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=2 * WIDTH,
            encoder_hidden_states_channels=WIDTH,
        ),
    )
