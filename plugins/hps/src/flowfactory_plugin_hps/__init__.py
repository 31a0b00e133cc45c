"""Human preference scores for flowfactory: what the spec may say, and where the rewards are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs
from flowfactory import Location, Provides, hookimpl, key
from flowfactory_plugin_clip import SimilaritySpec
from flowfactory_plugin_isolated import TARGET, ScorerSpec


@attrs.frozen(kw_only=True)
class HPSSpec(SimilaritySpec):
    """How much people would like an image for its prompt, by HPSv2.1."""

    weights: Location = key("Weights: a file, a folder or a hub id.", default=Location("xswu/HPSv2"))
    file: str = key("Which file of the folder or hub id.", default="HPS_v2.1_compressed.pt", min_length=1)
    revision: str | None = key("Branch, tag or commit of a hub id.", default=None)
    processor: Location = key(
        "Sizes of the network, tokenizer and image processor: a hub id or a folder.",
        default=Location("laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    )
    processor_revision: str | None = key("Branch, tag or commit of a hub processor.", default=None)
    antialias: bool = key(
        "Whether images are smoothed when made smaller; torchvision does so since 0.17, and did not before.",
        default=True,
    )
    scale: float = key("The cosine is multiplied by this; 1 gives the authors' scores, near 0.3.", default=1.0, gt=0)


@attrs.frozen(kw_only=True)
class HPSv3Spec(ScorerSpec):
    """HPSv3, in an environment of its own."""

    score, requirements = f"{Path(__file__).with_name('hpsv3.py')}:score", ("hpsv3==1.0.0",)
    python, environment = "3.10", None


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides("hps", HPSSpec, "flowfactory_plugin_hps.hps:HPS", "HPSv2.1: learned from people's choices.")
    yield Provides("hpsv3", HPSv3Spec, TARGET, "HPSv3, in an environment of its own.")
