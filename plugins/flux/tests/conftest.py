"""For every test here: Kontext scales condition images to one of these few, small sizes."""

from __future__ import annotations

import os

import pytest
from diffusers.pipelines.flux import pipeline_flux_kontext


@pytest.fixture(scope="module", autouse=True)
def small_condition_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWFACTORY_CACHE", f"{os.environ['FLOWFACTORY_CACHE']}-small")  # its keys do not tell
        patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(48, 32), (32, 64)])
        yield
