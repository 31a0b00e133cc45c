"""Families and refused classes that no checkpoint of the parts of others can be made of."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from families import IMAGE, VIDEO, Family
from flowfactory.contracts.key import Size
from further_images import (
    bria_fibo,
    bria_fibo_2,
    nucleus,
    prx,
)
from further_videos import (
    cosmos_2,
    easy_animate,
    frame_pack,
    guarded,
    helios,
    kandinsky5_from_an_image,
    ltx_long,
    motif,
    sana_from_an_image,
    sana_world,
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
}
"""Measured on demand only, as `RARE` is."""

SQUARE = Size(32, 32)


def cosmos_1(name: str) -> DiffusionPipeline:
    """Without models: its scheduler is looked at first."""
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "transformer", "vae"))
    return guarded(name, diffusers.EDMEulerScheduler(), **nothing)


REFUSED: dict[str, tuple[Any, Size]] = {
    "BriaFiboEditPipeline": (functools.partial(bria_fibo, edits=True), SQUARE),
    "Cosmos2TextToImagePipeline": (functools.partial(cosmos_2, "Cosmos2TextToImagePipeline"), IMAGE),
    "Cosmos2VideoToWorldPipeline": (functools.partial(cosmos_2, "Cosmos2VideoToWorldPipeline"), VIDEO),
    "CosmosTextToWorldPipeline": (functools.partial(cosmos_1, "CosmosTextToWorldPipeline"), VIDEO),
    "CosmosVideoToWorldPipeline": (functools.partial(cosmos_1, "CosmosVideoToWorldPipeline"), VIDEO),
    "HeliosPipeline": (functools.partial(helios, "HeliosPipeline"), Size(32, 48, 33)),
    "HeliosPyramidPipeline": (functools.partial(helios, "HeliosPyramidPipeline"), Size(128, 128, 33)),
    "HunyuanVideoFramepackPipeline": (frame_pack, VIDEO),
    "Kandinsky5I2VPipeline": (kandinsky5_from_an_image, VIDEO),
    "LTXI2VLongMultiPromptPipeline": (ltx_long, Size(64, 96, 9)),
    "MotifVideoImage2VideoPipeline": (functools.partial(motif, "MotifVideoImage2VideoPipeline"), VIDEO),
    "SanaImageToVideoPipeline": (sana_from_an_image, Size(32, 64, 5)),
    "SanaWMPipeline": (sana_world, Size(32, 32, 9)),
}
"""How a pipeline that is refused is made, and a size to ask it for, by class."""
