"""Small checkpoints of further editing pipelines with random weights, each of its real classes."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from flowfactory.models.tiny import CHAT, LANGUAGE_MODEL, WIDTH, byte_vocabulary
from flowfactory_plugin_qwen_image.checkpoint import IMAGE_TOKEN, tiny_qwen_image_edit
from other_images import VISION
from other_videos import wan_vae


def qwen_image_edit_plus() -> DiffusionPipeline:
    return diffusers.QwenImageEditPlusPipeline(**tiny_qwen_image_edit().components)


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL over bytes, and a processor that puts images into its prompts: PaddleOCR's does, without torchvision."""
    vocabulary = byte_vocabulary()
    token = len(vocabulary)
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary | {IMAGE_TOKEN: token}, merges=[], extra_special_tokens={"image_token": IMAGE_TOKEN}
    )
    eye = transformers.Qwen2VLImageProcessor(patch_size=16)
    processor = transformers.PaddleOCRVLProcessor(image_processor=eye, tokenizer=tokenizer, chat_template=CHAT)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_theta": 5e6}
    config = transformers.Qwen3VLConfig(
        text_config=LANGUAGE_MODEL | {"rope_parameters": rope, "vocab_size": token + 1},
        vision_config=VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        image_token_id=token,
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def joy_image(plus: bool = False) -> DiffusionPipeline:
    """JoyImage-Edit; with `plus`, its successor for several images."""
    network = diffusers.JoyImageEditPlusTransformer3DModel if plus else diffusers.JoyImageEditTransformer3DModel
    pipeline = diffusers.JoyImageEditPlusPipeline if plus else diffusers.JoyImageEditPipeline
    encoder, processor = qwen3_vl()
    return pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
        vae=wan_vae(),
        text_encoder=encoder,
        tokenizer=processor.tokenizer,
        transformer=network(
            hidden_size=WIDTH, num_attention_heads=2, text_dim=WIDTH, num_layers=2, rope_dim_list=[4, 6, 6]
        ),
        processor=processor,
    )
