"""ImageReward for flowfactory, in an environment of its own: its package wants libraries of 2023. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs
from flowfactory import Provides, hookimpl
from flowfactory_plugin_isolated import TARGET, ScorerSpec


@attrs.frozen(kw_only=True)
class ImageRewardSpec(ScorerSpec):
    """ImageReward-v1.0, in an environment of its own."""

    score, python, environment = f"{Path(__file__).with_name('scorer.py')}:score", "3.10", None
    requirements = (
        "image-reward==1.5",
        "openai-clip==1.0.1",  # it imports `clip`, which it does not ask for
        "transformers==4.40.2",  # later ones lack what its BLIP imports
        "diffusers==0.27.2",
        "accelerate==0.29.3",
        "datasets==2.19.2",
        "huggingface-hub==0.23.5",
        "torch==2.5.1",
        "torchvision==0.20.1",
        "numpy<2",
        "setuptools<81",
    )


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides("imagereward", ImageRewardSpec, TARGET, "ImageReward, in an environment of its own.")
