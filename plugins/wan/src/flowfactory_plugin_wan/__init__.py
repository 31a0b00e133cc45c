"""Wan for flowfactory: what the spec may say, and where the adapters are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Calls, PipelineSpec, Provides, hookimpl, key

EXPERTS = {"high": "transformer", "low": "transformer_2"}
"""The experts by the noise they are for."""


@attrs.frozen(kw_only=True)
class WanSpec(PipelineSpec):
    """Wan 2.1 and 2.2. `guidance` is classifier-free; where there are two experts, that of the one for high noise."""

    pipelines: ClassVar[tuple[str, ...]] = ("WanPipeline",)
    makes: ClassVar[Literal["image", "video", "unknown"]] = "video"

    guidance_low: float | None = key(
        "Wan 2.2: guidance of the expert for low noise; as for high noise when absent.", default=None, ge=0
    )
    experts: Literal["both", "high", "low"] = key(
        "Wan 2.2: which experts to train, that for high noise, that for low noise, or both.", default="both"
    )

    @property
    def calls(self) -> Calls:
        return "batch" if self.experts == "both" else "unknown"

    def trains(self, part: str) -> bool:
        return part in EXPERTS.values() if self.experts == "both" else part == EXPERTS[self.experts]


@attrs.frozen(kw_only=True)
class WanI2VSpec(WanSpec):
    """Wan 2.1 and 2.2 from an image: each row has the first frame."""

    pipelines: ClassVar[tuple[str, ...]] = ("WanImageToVideoPipeline",)
    images: ClassVar[int | None] = 1


@hookimpl
def flowfactory_adapters() -> Iterable[Provides]:
    home = "flowfactory_plugin_wan"
    yield Provides("wan", WanSpec, f"{home}.wan:Wan", "Wan 2.1 and 2.2, text to video.")
    yield Provides("wan-i2v", WanI2VSpec, f"{home}.i2v:WanI2V", "Wan 2.1 and 2.2, image to video.")
