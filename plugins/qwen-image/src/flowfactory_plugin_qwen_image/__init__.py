"""Qwen-Image for flowfactory: what the spec may say, and where the adapters are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Calls, PipelineSpec, Provides, hookimpl

TARGETS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
)  # fmt: skip
"""What Flow-GRPO's LoRA adapts: attention and the feed-forward layers, of image and text."""


@attrs.frozen(kw_only=True)
class QwenImageSpec(PipelineSpec):
    """Qwen-Image. `guidance` is classifier-free; 1 for checkpoints that were distilled to need none."""

    targets: ClassVar[tuple[str, ...]] = TARGETS
    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)
    makes: ClassVar[Literal["image", "video", "unknown"]] = "image"

    @property
    def calls(self) -> Calls:
        return "batch"


@attrs.frozen(kw_only=True)
class QwenImageEditSpec(PipelineSpec):
    """Qwen-Image-Edit: each row has the image to edit."""

    targets: ClassVar[tuple[str, ...]] = TARGETS
    pipelines: ClassVar[tuple[str, ...]] = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
    makes: ClassVar[Literal["image", "video", "unknown"]] = "image"


@hookimpl
def flowfactory_adapters() -> Iterable[Provides]:
    home = "flowfactory_plugin_qwen_image"
    yield Provides("qwen-image", QwenImageSpec, f"{home}.qwen_image:QwenImage", "Qwen-Image.")
    yield Provides("qwen-image-edit", QwenImageEditSpec, f"{home}.edit:QwenImageEdit", "Qwen-Image-Edit.")
