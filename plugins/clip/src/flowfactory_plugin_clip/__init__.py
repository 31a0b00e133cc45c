"""CLIP similarity for flowfactory: what the spec may say, and where the reward is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import DifferentiableSpec, Location, Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class FramesSpec:
    """Keys of every reward that looks at images one by one: how it sees a video."""

    frames: int = key("Frames of a video that are scored, spread evenly over it.", default=8, ge=1)
    pool: Literal["mean", "min", "max"] = key("How the scores of a video's frames become one.", default="mean")


@attrs.frozen(kw_only=True)
class SimilaritySpec(FramesSpec, DifferentiableSpec):
    """Keys of every reward that is a cosine of prompt and image."""

    scale: float = key("The cosine is multiplied by this; 1 leaves it as it is.", default=1.0, gt=0)


@attrs.frozen(kw_only=True)
class CLIPSpec(SimilaritySpec):
    """Cosine similarity of prompt and image."""

    path: Location = key(
        "CLIP checkpoint with its processor: a hub id or a folder.", default=Location("openai/clip-vit-large-patch14")
    )
    revision: str | None = key("Branch, tag or commit of a hub checkpoint.", default=None)


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides("clip", CLIPSpec, "flowfactory_plugin_clip.clip:CLIP", "Image-text similarity by CLIP.")
