"""Qwen-Image for flowfactory: what the spec may say, and where the adapters are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory.builtin import PipelineSpec
from flowfactory.hooks import Provides, hookimpl
from flowfactory.spec import Calls


@attrs.frozen(kw_only=True)
class QwenImageSpec(PipelineSpec):
    """Qwen-Image. `guidance` is classifier-free; 1 for checkpoints that were distilled to need none."""

    @property
    def calls(self) -> Calls:
        return "batch"


@attrs.frozen(kw_only=True)
class QwenImageEditSpec(PipelineSpec):
    """Qwen-Image-Edit: each row has the image to edit."""


@hookimpl
def flowfactory_adapters() -> Iterable[Provides]:
    home = "flowfactory_plugin_qwen_image"
    yield Provides("qwen-image", QwenImageSpec, f"{home}.qwen_image:QwenImage", "Qwen-Image.")
    yield Provides("qwen-image-edit", QwenImageEditSpec, f"{home}.edit:QwenImageEdit", "Qwen-Image-Edit.")
