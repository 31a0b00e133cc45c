"""Text rendering for flowfactory: what the spec may say, and where the reward is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class OCRSpec:
    """The quoted text of the prompt against what an OCR engine reads."""

    confidence: float = key("Lines the engine is less sure of are not read.", default=0.5, ge=0, le=1)
    frames: int = key("Frames of a video that are read, spread evenly over it.", default=8, ge=1)
    pool: Literal["mean", "min", "max"] = key("How the scores of a video's frames become one.", default="mean")
    detect: bool = key("Whether to look for lines; false: the whole image is one line, such as one word.", default=True)
    threads: int = key("CPU threads of the engine; 0 leaves it to onnxruntime.", default=0, ge=0, le=1024)


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides("ocr", OCRSpec, "flowfactory_plugin_ocr.ocr:OCR", "Text rendering: quoted words, read by OCR.")
