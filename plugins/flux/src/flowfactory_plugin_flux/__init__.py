"""FLUX.1 for flowfactory: what the spec may say, and where the adapter is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Calls, PipelineSpec, Provides, hookimpl

TARGETS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
)  # fmt: skip
"""What Flow-GRPO's LoRA adapts: attention, and the feed-forward layers of the double-stream blocks."""


@attrs.frozen(kw_only=True)
class FluxSpec(PipelineSpec):
    """FLUX.1 dev and schnell. `guidance` is the embedded guidance of dev; schnell has none and ignores it."""

    targets: ClassVar[tuple[str, ...]] = TARGETS
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    makes: ClassVar[Literal["image", "video", "unknown"]] = "image"
    patch: ClassVar[int] = 2

    @property
    def calls(self) -> Calls:
        return "batch"


@attrs.frozen(kw_only=True)
class FluxKontextSpec(PipelineSpec):
    """FLUX.1 Kontext: each row has the image to edit. `guidance` is embedded."""

    targets: ClassVar[tuple[str, ...]] = TARGETS
    pipelines: ClassVar[tuple[str, ...]] = ("FluxKontextPipeline",)
    makes: ClassVar[Literal["image", "video", "unknown"]] = "image"
    patch: ClassVar[int] = 2


@hookimpl
def flowfactory_adapters() -> Iterable[Provides]:
    yield Provides("flux", FluxSpec, "flowfactory_plugin_flux.flux:Flux", "FLUX.1 dev and schnell.")
    target = "flowfactory_plugin_flux.kontext:FluxKontext"
    yield Provides("flux-kontext", FluxKontextSpec, target, "FLUX.1 Kontext: edits images.")
