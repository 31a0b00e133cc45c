"""Families and refused classes that no checkpoint of the parts of others can be made of."""

from __future__ import annotations

import functools
import json
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from families import IMAGE, VIDEO, Family, ltx
from flowfactory.contracts.key import Size
from from_images import (
    hunyuan_skyreels,
    hunyuan_video_15_from_an_image,
    hunyuan_video_from_an_image,
    kandinsky5_edit,
    longcat_edit,
    z_image_omni,
)
from further_images import (
    bria_fibo,
    bria_fibo_2,
    nucleus,
    prx,
)
from further_videos import (
    cosmos_2,
    cosmos_25,
    easy_animate,
    guarded,
    kandinsky5_from_an_image,
    motif,
    sana_from_an_image,
)
from other_images import flux2_klein
from rare_families import of_parts

_CFG: dict[str, Any] = {"guidance_scale": 5.0}

FURTHER = {
    "bria-fibo": Family(bria_fibo, Size(32, 64), 5.0, _CFG, 32),
    "bria-fibo-2": Family(bria_fibo_2, IMAGE, 5.0, _CFG),
    "easy-animate": Family(easy_animate, VIDEO, 5.0, _CFG),
    "flux-2-klein-kv": Family(
        functools.partial(of_parts, "Flux2KleinKVPipeline", flux2_klein, is_distilled=True), IMAGE, 1.0, {}, 64
    ),
    "motif-video": Family(motif, VIDEO, 1.0, {}, 32),
    "nucleus-image": Family(nucleus, IMAGE, 4.0, {"guidance_scale": 4.0}),
    "prx": Family(prx, Size(32, 64), 5.0, {**_CFG, "use_resolution_binning": False}),
    "bria-fibo-edit": Family(
        functools.partial(bria_fibo, edits=True),
        Size(32, 64),
        5.0,
        _CFG,
        64,
        image=1,
        asks=lambda prompt: json.dumps({"edit_instruction": prompt}),
    ),
    "cosmos-2.5": Family(cosmos_25, VIDEO, 5.0, _CFG, 160),
    "hunyuan-video-1.5-i2v": Family(
        hunyuan_video_15_from_an_image, Size(24, 36, 5), 1.0, {}, image=1, shapes=((48, 32), (96, 64))
    ),
    "hunyuan-skyreels-i2v": Family(hunyuan_skyreels, VIDEO, 5.0, {"true_cfg_scale": 5.0}, 32, image=1),
    "kandinsky-5-edit": Family(kandinsky5_edit, IMAGE, 5.0, _CFG, 256, image=1),
    "longcat-image-edit": Family(longcat_edit, Size(64, 80), 5.0, _CFG, image=1, shapes=((48, 32), (96, 64))),
    "ltx-condition": Family(
        functools.partial(of_parts, "LTXConditionPipeline", ltx, scheduler=FlowMatchEulerDiscreteScheduler()),
        Size(64, 96, 9),
        3.0,
        {"guidance_scale": 3.0},
        32,
    ),
    "z-image-omni": Family(z_image_omni, IMAGE, 5.0, _CFG, 96),
}
"""Measured on demand only, as `RARE` is."""


def cosmos_1(name: str) -> DiffusionPipeline:
    """Without models: its scheduler is looked at first."""
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "transformer", "vae"))
    return guarded(name, diffusers.EDMEulerScheduler(), **nothing)


REFUSED: dict[str, tuple[Any, Size]] = {
    "Cosmos2TextToImagePipeline": (functools.partial(cosmos_2, "Cosmos2TextToImagePipeline"), IMAGE),
    "Cosmos2VideoToWorldPipeline": (functools.partial(cosmos_2, "Cosmos2VideoToWorldPipeline"), VIDEO),
    "CosmosTextToWorldPipeline": (functools.partial(cosmos_1, "CosmosTextToWorldPipeline"), VIDEO),
    "CosmosVideoToWorldPipeline": (functools.partial(cosmos_1, "CosmosVideoToWorldPipeline"), VIDEO),
    "HunyuanVideoImageToVideoPipeline": (hunyuan_video_from_an_image, VIDEO),
    "Kandinsky5I2VPipeline": (kandinsky5_from_an_image, VIDEO),
    "MotifVideoImage2VideoPipeline": (functools.partial(motif, "MotifVideoImage2VideoPipeline"), VIDEO),
    "SanaImageToVideoPipeline": (sana_from_an_image, Size(32, 64, 5)),
}
"""How a pipeline that is refused is made, and a size to ask it for, by class."""
