"""Small checkpoints of further editing pipelines with random weights, each of its real classes."""

from __future__ import annotations

import diffusers
import transformers
from diffusers import DiffusionPipeline
from flowfactory.models.tiny import LANGUAGE_MODEL, WIDTH
from flowfactory_plugin_qwen_image.checkpoint import tiny_qwen_image_edit
from other_images import ROPE, VISION
from other_videos import wan_vae


def qwen_image_edit_plus() -> DiffusionPipeline:
    return diffusers.QwenImageEditPlusPipeline(**tiny_qwen_image_edit().components)


def joy_image_edit() -> DiffusionPipeline:
    one = tiny_qwen_image_edit()
    vision = VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0], "patch_size": 14}
    rope = ROPE | {"mrope_interleaved": True}
    token = one.text_encoder.config.image_token_id
    config = transformers.Qwen3VLConfig(
        text_config=LANGUAGE_MODEL | {"rope_parameters": rope, "vocab_size": token + 1},
        vision_config=vision,
        image_token_id=token,
    )
    return diffusers.JoyImageEditPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=wan_vae(),
        text_encoder=transformers.Qwen3VLForConditionalGeneration(config),
        tokenizer=one.tokenizer,
        processor=one.processor,
        transformer=diffusers.JoyImageEditTransformer3DModel(
            patch_size=[1, 2, 2],
            in_channels=16,
            hidden_size=WIDTH,
            num_attention_heads=2,
            text_dim=WIDTH,
            num_layers=1,
            rope_dim_list=[4, 6, 6],
            theta=256,
        ),
    )
