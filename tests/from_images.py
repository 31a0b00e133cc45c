"""Small checkpoints of pipelines that edit an image or begin with one, each of its real classes."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from families import hunyuan_video, z_image
from flowfactory.models.tiny import CHAT, LANGUAGE_MODEL, WIDTH, byte_tokenizer, byte_vocabulary
from flowfactory_plugin_qwen_image.checkpoint import IMAGE_TOKEN
from further_images import kandinsky5_conditioned
from further_videos import eye, hunyuan_network
from other_images import kandinsky5_image, longcat, qwen_vl
from other_videos import hunyuan_video_15
from rare_families import of_parts

MARKS = {"image_token": IMAGE_TOKEN, "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
"""What stands for an image in Qwen's prompts, and what comes before and after it."""


def qwen_with_eyes() -> tuple[Any, Any]:
    """Qwen2.5-VL over bytes, and a processor that puts images into its prompts."""
    vocabulary = byte_vocabulary()
    places = {mark: len(vocabulary) + i for i, mark in enumerate(MARKS.values())}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary | places, merges=[], extra_special_tokens=MARKS)
    processor = transformers.PaddleOCRVLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(), tokenizer=tokenizer, chat_template=CHAT
    )
    image, start, end = places.values()
    encoder = qwen_vl(0.5, image_token_id=image, vision_start_token_id=start, vision_end_token_id=end)
    return encoder, processor


def longcat_edit() -> DiffusionPipeline:
    encoder, processor = qwen_with_eyes()
    own = {"text_encoder": encoder, "tokenizer": processor.tokenizer, "text_processor": processor}
    return of_parts("LongCatImageEditPipeline", longcat, **own)


def kandinsky5_edit() -> DiffusionPipeline:
    encoder, processor = qwen_with_eyes()
    own = {"text_encoder": encoder, "tokenizer": processor, "transformer": kandinsky5_conditioned()}
    return of_parts("Kandinsky5I2IPipeline", kandinsky5_image, **own)


def z_image_omni() -> DiffusionPipeline:
    sizes = {name: value for name, value in z_image().transformer.config.items() if not name.startswith("_")}
    network = diffusers.ZImageTransformer2DModel(**sizes | {"siglip_feat_dim": WIDTH})
    for token in (network.x_pad_token, network.cap_pad_token, network.siglip_pad_token):
        torch.nn.init.normal_(token)
    config = transformers.Siglip2VisionConfig(
        hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, num_patches=16
    )
    own = {
        "siglip": transformers.Siglip2VisionModel(config),
        "siglip_processor": transformers.Siglip2ImageProcessor(max_num_patches=16),
    }
    return of_parts("ZImageOmniPipeline", z_image, transformer=network, **own)


def hunyuan_video_15_from_an_image() -> DiffusionPipeline:
    parts = hunyuan_video_15().components
    sizes = {name: value for name, value in parts["transformer"].config.items() if not name.startswith("_")}
    network = diffusers.HunyuanVideo15Transformer3DModel(
        **sizes | {"image_embed_dim": WIDTH, "task_type": "i2v", "target_size": 32}
    )
    return of_parts("HunyuanVideo15ImageToVideoPipeline", hunyuan_video_15, transformer=network, **eye())


def hunyuan_skyreels() -> DiffusionPipeline:
    network = hunyuan_network(diffusers.HunyuanVideoTransformer3DModel, in_channels=8, guidance_embeds=False)
    return of_parts("HunyuanSkyreelsImageToVideoPipeline", hunyuan_video, transformer=network)


def hunyuan_video_from_an_image(condition: str = "token_replace") -> DiffusionPipeline:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|end_header_id|>"]})
    text = LANGUAGE_MODEL | {"model_type": "llama", "num_hidden_layers": 4, "vocab_size": 261}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=259, image_seq_length=4, pad_token_id=256
    )
    size = {"height": 28, "width": 28}
    own = {
        "text_encoder": transformers.LlavaForConditionalGeneration(config),
        "tokenizer": tokenizer,
        "image_processor": transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size),
        "transformer": hunyuan_network(
            diffusers.HunyuanVideoTransformer3DModel,
            in_channels=4 if condition == "token_replace" else 9,
            image_condition_type=condition,
            guidance_embeds=condition == "token_replace",
        ),
    }
    return of_parts("HunyuanVideoImageToVideoPipeline", hunyuan_video, **own)
