"""For every test here: condition images of a 256th of the million pixels that they are scaled to."""

from __future__ import annotations

import os

import pytest
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit


@pytest.fixture(scope="module", autouse=True)
def small_condition_images():
    calculate = pipeline_qwenimage_edit.calculate_dimensions

    def smaller(area, ratio):
        return calculate(area // 256, ratio)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWFACTORY_CACHE", f"{os.environ['FLOWFACTORY_CACHE']}-small")  # its keys do not tell
        patch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", smaller)
        yield
