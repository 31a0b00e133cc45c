"""Fixtures of the tests that drive whole pipelines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit


@pytest.fixture(scope="module")
def small_condition_images() -> Iterator[None]:
    """Kontext scales condition images to one of these, Qwen-Image-Edit to a 256th of a million pixels."""
    calculate = pipeline_qwenimage_edit.calculate_dimensions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: calculate(area >> 8, ratio))
        patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(48, 32), (32, 64)])
        yield
