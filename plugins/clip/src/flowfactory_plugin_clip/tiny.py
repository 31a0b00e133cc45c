"""A CLIP checkpoint with random weights: the real classes at a small size, a few hundred KB, nothing downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from flowfactory.models.tiny import WIDTH, clip_tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

PIXELS = 32


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write model and processor into `folder`: 32 pixels in patches of 8, embeddings of 32 numbers."""
    tokenizer = clip_tokenizer()
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    marks = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={**tower, **marks, "vocab_size": len(tokenizer)},
        vision_config={**tower, "image_size": PIXELS, "patch_size": 8},
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    model.save_pretrained(folder)
    square = {"height": PIXELS, "width": PIXELS}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=square), tokenizer).save_pretrained(
        folder
    )
    return folder
