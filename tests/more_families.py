"""Families whose cheaper columns are measured in every test run, and all on demand; and classes that are refused."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from families import FAMILIES, IMAGE, VIDEO, Family, flux2
from flowfactory.contracts.key import Size
from other_edits import qwen_image_edit_plus
from other_images import bria, flux2_klein, hidream, hunyuan_image, longcat, lumina, ovis
from other_videos import hunyuan_video_15, kandinsky5_video, mochi, sana_video, sky_reels, wan_vace

SQUARE = Size(32, 32)

MORE = {
    "bria": Family(bria, IMAGE, 5.0, {"guidance_scale": 5.0}, 32),
    "flux-2-images": Family(flux2, IMAGE, 4.0, {"guidance_scale": 4.0}, image=2, shapes=((96, 64), (64, 128))),
    "flux-2-klein": Family(flux2_klein, IMAGE, 4.0, {"guidance_scale": 4.0}, 64),
    "hidream": Family(hidream, SQUARE, 5.0, {"guidance_scale": 5.0}, 32),
    "hunyuan-video-1.5": Family(hunyuan_video_15, VIDEO, 1.0, {}),
    "kandinsky-5": Family(kandinsky5_video, VIDEO, 5.0, {"guidance_scale": 5.0}, 900),
    "longcat-image": Family(longcat, IMAGE, 4.5, {"guidance_scale": 4.5}),
    "lumina": Family(lumina, IMAGE, 4.0, {"guidance_scale": 4.0}),
    "mochi": Family(mochi, Size(32, 48, 7), 4.5, {"guidance_scale": 4.5}, 32),
    "ovis-image": Family(ovis, IMAGE, 5.0, {"guidance_scale": 5.0}),
    "qwen-image-edit-plus": Family(qwen_image_edit_plus, IMAGE, 4.0, {"true_cfg_scale": 4.0}, image=2),
    "sana-video": Family(
        sana_video, Size(32, 64, 5), 6.0, {"guidance_scale": 6.0, "use_resolution_binning": False}, 32
    ),
    "skyreels-v2": Family(sky_reels, VIDEO, 6.0, {"guidance_scale": 6.0}, 32),
    "wan-vace": Family(wan_vace, VIDEO, 5.0, {"guidance_scale": 5.0}, 32),
}
EVERY = FAMILIES | MORE

LIKE = {
    "flux": (
        "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline", "FluxControlPipeline",
        "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline", "FluxKontextInpaintPipeline",
    ),
    "sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline", "StableDiffusion3PAGImg2ImgPipeline"),
    "qwen-image": ("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
    "qwen-image-edit": ("QwenImageEditInpaintPipeline",),
    "chroma": ("ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    "z-image": ("ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    "cogview-4": ("CogView4ControlPipeline",),
    "wan": ("WanVideoToVideoPipeline",),
    "ltx": ("LTXImageToVideoPipeline", "LTXConditionPipeline"),
    "sana": ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"),
    "flux-2-klein": ("Flux2KleinInpaintPipeline",),
    "skyreels-v2": (
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline", "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    ),
}  # fmt: skip
"""Classes that are made of the parts of a family, and are refused."""


def refused() -> dict[str, Callable[[], DiffusionPipeline]]:
    """How pipelines are made that are refused, by class."""
    made = {name: functools.partial(_of_parts, family, name) for family, names in LIKE.items() for name in names}
    return made | {"HunyuanImagePipeline": hunyuan_image}


def _of_parts(family: str, name: str) -> DiffusionPipeline:
    """A pipeline of class `name` out of the parts of one of `family`."""
    kind: Any = getattr(diffusers, name)
    parts = EVERY[family].make().components
    return kind(**{part: value for part, value in parts.items() if value is not None})


def small_sizes(patch: pytest.MonkeyPatch) -> None:
    """What pipelines scale images to: to a 256th of a million pixels, to one of two sizes, or to 32 x 32.

    What is encoded so is cached apart: the key of a condition does not know that its pipeline was changed.
    """
    patch.setenv("FLOWFACTORY_CACHE", f"{os.environ['FLOWFACTORY_CACHE']}-small")
    for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
        calculate = module.calculate_dimensions
        patch.setattr(module, "calculate_dimensions", lambda area, ratio, own=calculate: own(area >> 8, ratio))
    patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(48, 32), (32, 64)])
    begin = diffusers.HiDreamImagePipeline.__init__

    @functools.wraps(begin)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.default_sample_size = 4

    patch.setattr(diffusers.HiDreamImagePipeline, "__init__", __init__)
