"""Families whose cheaper columns are measured in every test run, and all on demand; and classes that are refused."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import attrs
import diffusers
import pytest
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_image2video
from diffusers.pipelines.joyimage import image_processor
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from families import FAMILIES, IMAGE, VIDEO, Family, flux2
from flowfactory.contracts.key import Size
from further_families import FURTHER, REFUSED
from further_videos import COSMOS, Guardrail
from other_edits import joy_image, qwen_image_edit_plus
from other_images import bria, flux2_klein, hidream, hunyuan_image, longcat, lumina, ovis
from other_videos import (
    hunyuan_video_15,
    kandinsky5_video,
    mochi,
    sana_video,
    sky_reels,
    sky_reels_forcing,
    wan_vace,
)
from rare_families import RARE, of_parts

SQUARE = Size(32, 32)

MORE = {
    "bria": Family(bria, IMAGE, 5.0, {"guidance_scale": 5.0}, 32),
    "flux-2-images": Family(flux2, IMAGE, 4.0, {"guidance_scale": 4.0}, image=2, shapes=((96, 64), (64, 128))),
    "flux-2-klein": Family(flux2_klein, IMAGE, 4.0, {"guidance_scale": 4.0}, 64),
    "hidream": Family(hidream, Size(16, 64), 5.0, {"guidance_scale": 5.0}, 32),
    "hunyuan-video-1.5": Family(hunyuan_video_15, VIDEO, 1.0, {}),
    "joyimage-edit": Family(
        joy_image,
        IMAGE,
        4.0,
        {"guidance_scale": 4.0},
        image=1,
        shapes=((48, 32), (96, 70)),
        trained=lambda stepped: stepped[:, -1:],
    ),
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
    "skyreels-v2-forcing": Family(sky_reels_forcing, VIDEO, 6.0, {"guidance_scale": 6.0}, 32),
    "wan-vace": Family(wan_vace, VIDEO, 5.0, {"guidance_scale": 5.0}, 32),
}
OFTEN = FAMILIES | MORE
EVERY = OFTEN | RARE | FURTHER

LIKE = {
    "ltx": ("LTXImageToVideoPipeline",),
    "skyreels-v2-forcing": ("SkyReelsV2DiffusionForcingImageToVideoPipeline",),
}
"""Classes that are made of the parts of a family, and are refused when they are called."""

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "AmusedPipeline": functools.partial(diffusers.AmusedScheduler, mask_token_id=0),
    "AllegroPipeline": diffusers.EulerAncestralDiscreteScheduler,
    "AnyFlowFARPipeline": diffusers.FlowMapEulerDiscreteScheduler,
    "AnyFlowPipeline": diffusers.FlowMapEulerDiscreteScheduler,
    "CogVideoXImageToVideoPipeline": diffusers.CogVideoXDDIMScheduler,
    "CogVideoXPipeline": diffusers.CogVideoXDDIMScheduler,
    "CogView3PlusPipeline": diffusers.CogVideoXDDIMScheduler,
    "ConsisIDPipeline": diffusers.CogVideoXDPMScheduler,
    "HunyuanDiTPAGPipeline": diffusers.DDPMScheduler,
    "HunyuanDiTPipeline": diffusers.DDPMScheduler,
    "LattePipeline": diffusers.DDIMScheduler,
    "PixArtAlphaPipeline": diffusers.DPMSolverMultistepScheduler,
    "PixArtSigmaPAGPipeline": diffusers.DPMSolverMultistepScheduler,
    "PixArtSigmaPipeline": diffusers.DPMSolverMultistepScheduler,
    "SanaSprintPipeline": diffusers.SCMScheduler,
    "VQDiffusionPipeline": functools.partial(diffusers.VQDiffusionScheduler, num_vec_classes=8),
}
"""Classes that are refused for the scheduler that their published checkpoints have."""


@attrs.frozen
class Refusal:
    """How a pipeline is made that is refused for more than its class's signatures, and a size to ask it for."""

    make: Callable[[], DiffusionPipeline]
    size: Size = SQUARE


def refused() -> dict[str, Refusal]:
    """By class."""
    made = {
        name: Refusal(functools.partial(of_parts, name, EVERY[family].make), EVERY[family].size)
        for family, names in LIKE.items()
        for name in names
    }
    alone = {
        name: Refusal(functools.partial(_without_models, name, scheduler)) for name, scheduler in SCHEDULERS.items()
    }
    others = {name: Refusal(*how) for name, how in REFUSED.items()}
    return made | alone | others | {"HunyuanImagePipeline": Refusal(hunyuan_image)}


def _without_models(name: str, scheduler: Callable[[], Any]) -> DiffusionPipeline:
    kind: Any = getattr(diffusers, name)
    takes = inspect.signature(kind.__init__).parameters.values()
    parts = {part.name: None for part in takes if part.name != "self" and part.default is part.empty}
    return kind(**parts | {"scheduler": scheduler()})


SHORT_TEMPLATE = {
    "template": "ab<image>cd<|end_header_id|>x<|end_header_id|>y{}z<|end_header_id|>\n\n",
    "crop_start": 8,
    "image_emb_start": 3,
    "image_emb_end": 7,
    "image_emb_len": 4,
}
"""What HunyuanVideo writes around a prompt and an image, for a tokenizer of bytes and an image of four parts."""


def small_sizes(patch: pytest.MonkeyPatch) -> None:
    """What pipelines scale images to: to a 256th of a million pixels, to one of a few sizes, or to 32 x 32.

    Two that pad every prompt to many hundred tokens, or write it anew in so many, do it to fewer.

    Cosmos' checker of prompts, a package of its own, is taken for one that lets everything pass.

    What is encoded so is cached apart: the key of a condition does not know that its pipeline was changed.
    """
    patch.setenv("FLOWFACTORY_CACHE", f"{os.environ['FLOWFACTORY_CACHE']}-small")
    for module in COSMOS:
        patch.setattr(module, "CosmosSafetyChecker", Guardrail)
    for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus, pipeline_longcat_image_edit):
        calculate = module.calculate_dimensions
        patch.setattr(module, "calculate_dimensions", lambda area, ratio, own=calculate: own(area >> 8, ratio))
    patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(48, 32), (32, 64)])
    patch.setitem(image_processor.BUCKETS, 1024, [(32, 48), (48, 32), (32, 64), (64, 32)])
    _from_then_on(patch, diffusers.HiDreamImagePipeline, default_sample_size=4)
    for kind in (diffusers.Kandinsky5T2IPipeline, diffusers.Kandinsky5I2IPipeline):
        _from_then_on(patch, kind, resolutions=[(48, 32)])
    for kind in (diffusers.LongCatImagePipeline, diffusers.LongCatImageEditPipeline):
        _from_then_on(patch, kind, tokenizer_max_length=64)
    for kind in (diffusers.HunyuanVideo15Pipeline, diffusers.HunyuanVideo15ImageToVideoPipeline):
        _from_then_on(patch, kind, tokenizer_2_max_length=64, vision_num_semantic_tokens=16)
    for name, value in SHORT_TEMPLATE.items():
        patch.setitem(pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE, name, value)


def _from_then_on(patch: pytest.MonkeyPatch, kind: Any, **values: Any) -> None:
    """Let all that are made of a class have these attributes."""
    begin = kind.__init__

    @functools.wraps(begin)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        for name, value in values.items():
            setattr(self, name, value)

    patch.setattr(kind, "__init__", __init__)
