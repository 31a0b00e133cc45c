"""Qwen-Image checkpoints with random weights: every class is the real one, every size is not."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from flowfactory.models.tiny import LANGUAGE_MODEL, WIDTH, byte_tokenizer, byte_vocabulary
from transformers import (
    PaddleOCRVLProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
)

IMAGE_TOKEN = "<|image_pad|>"
"""What a processor puts in the place of an image, as often as the image has parts."""


def tiny_qwen_image(seed: int = 0) -> QwenImagePipeline:
    """Qwen-Image; a token stands for 2 x 2 pixels of a latent an eighth as high and wide as the image."""
    torch.manual_seed(seed)
    return QwenImagePipeline(tokenizer=byte_tokenizer(), **_parts(LANGUAGE_MODEL, {}))


def tiny_qwen_image_edit(seed: int = 0) -> QwenImageEditPipeline:
    """Qwen-Image-Edit: a processor puts images into the text encoder's prompts.

    The processor is PaddleOCR's, which does the same: the class of Qwen's own needs torchvision, for videos.
    """
    torch.manual_seed(seed)
    vocabulary = byte_vocabulary()
    token = len(vocabulary)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary | {IMAGE_TOKEN: token}, merges=[], extra_special_tokens={"image_token": IMAGE_TOKEN}
    )
    return QwenImageEditPipeline(
        tokenizer=tokenizer,
        processor=PaddleOCRVLProcessor(image_processor=Qwen2VLImageProcessor(), tokenizer=tokenizer),
        **_parts(LANGUAGE_MODEL | {"vocab_size": token + 1}, {"image_token_id": token}),
    )


def _parts(language_model: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    """What both have, around a language model of these sizes."""
    rope = {"type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    config = Qwen2_5_VLConfig(text_config=language_model | {"rope_parameters": rope}, vision_config=vision, **tokens)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        "vae": AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        "transformer": QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    }
