"""Small checkpoints of further editing pipelines with random weights, each of its real classes."""

from __future__ import annotations

import diffusers
from diffusers import DiffusionPipeline
from flowfactory_plugin_qwen_image.checkpoint import tiny_qwen_image_edit


def qwen_image_edit_plus() -> DiffusionPipeline:
    return diffusers.QwenImageEditPlusPipeline(**tiny_qwen_image_edit().components)
