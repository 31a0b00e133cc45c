"""PickScore for flowfactory: what the spec may say, and where the rewards are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import DifferentiableSpec, Location, Provides, hookimpl, key
from flowfactory_plugin_clip import FramesSpec


@attrs.frozen(kw_only=True)
class PickScoreRankSpec(FramesSpec):
    """How much people would like an image for its prompt, compared with others."""

    path: Location = key("Weights: a hub id or a folder.", default=Location("yuvalkirstain/PickScore_v1"))
    revision: str | None = key("Branch, tag or commit of a hub checkpoint.", default=None)
    processor: Location = key(
        "Tokenizer and image processor: a hub id or a folder.",
        default=Location("laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    )
    processor_revision: str | None = key("Branch, tag or commit of a hub processor.", default=None)
    divide: float = key(
        "The score is divided by this: 1 gives the authors' scores, near 20; 26 gives Flow-GRPO's, below 1.",
        default=1.0,
        gt=0,
    )


@attrs.frozen(kw_only=True)
class PickScoreSpec(PickScoreRankSpec, DifferentiableSpec):
    """How much people would like an image for its prompt."""


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    home = "flowfactory_plugin_pickscore.pickscore"
    yield Provides("pickscore", PickScoreSpec, f"{home}:PickScore", "PickScore: learned from people's choices.")
    yield Provides("pickscore-rank", PickScoreRankSpec, f"{home}:PickScoreRank", "The place of a sample in its group.")
