"""LAION's aesthetic predictor for flowfactory: what the spec may say, and where the reward is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import DifferentiableSpec, Location, Provides, hookimpl, key
from flowfactory_plugin_clip import FramesSpec


@attrs.frozen(kw_only=True)
class AestheticSpec(FramesSpec, DifferentiableSpec):
    """How pleasing people would find an image, whatever its prompt."""

    path: Location = key(
        "CLIP checkpoint with its processor: a hub id or a folder.", default=Location("openai/clip-vit-large-patch14")
    )
    revision: str | None = key("Branch, tag or commit of a hub checkpoint.", default=None)
    head: Location = key(
        "The predictor on top: a .pth or .safetensors file, or a hub id.",
        default=Location("trl-lib/ddpo-aesthetic-predictor"),
    )
    head_file: str = key("Its file at a hub id.", default="aesthetic-model.pth", min_length=1)
    head_revision: str | None = key("Branch, tag or commit of its hub id.", default=None)
    divide: float = key(
        "The score is divided by this: 1 gives the authors' scores, from about 1 to 10; 10 gives below 1.",
        default=1.0,
        gt=0,
    )


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    target = "flowfactory_plugin_aesthetic.aesthetic:Aesthetic"
    yield Provides("aesthetic", AestheticSpec, target, "LAION's aesthetic predictor: how pleasing an image is.")
