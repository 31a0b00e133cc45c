"""PickScore (Kirstain et al. 2023, arXiv:2305.01569): CLIP-H trained on people's choices between two images.

    s(p, x) = exp(logit_scale) cos(text(p), image(x)) / divide

The rank of a sample among the `K` of its group, ties sharing the mean of their places:

    r(x) = (#{s < s(x)} + (#{s = s(x)} - 1) / 2) / K                                   in [0, (K - 1) / K]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from flowfactory import DifferentiableReward, GroupReward, Row, Sample, Score, Shared
from flowfactory_plugin_clip.backbone import Backbone
from flowfactory_plugin_clip.tiny import tiny_clip
from torch import Tensor

from flowfactory_plugin_pickscore import PickScoreRankSpec, PickScoreSpec


class PickScore(DifferentiableReward):
    """The authors' score of each sample."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})
    spec: PickScoreSpec
    backbone: Backbone

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.backbone = load_backbone(self.spec, device, dtype, shared)

    def place(self, device: torch.device) -> None:
        self.backbone.place(device)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        scores: list[float] = pick_scores(self.backbone, samples, self.spec).tolist()
        return scores

    def value(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        cosines = self.backbone.cosines(list(media), [row.prompt for row in rows], self.spec, exact=False)
        return self.backbone.temperature * cosines / self.spec.divide

    @classmethod
    def tiny(cls, folder: Path) -> Mapping[str, Any]:
        return tiny_keys(folder)


class PickScoreRank(GroupReward):
    """The place of each sample in its group by PickScore; all that is left of the score is its order."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})
    spec: PickScoreRankSpec
    backbone: Backbone

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.backbone = load_backbone(self.spec, device, dtype, shared)

    def place(self, device: torch.device) -> None:
        self.backbone.place(device)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        places: list[float] = ranks(pick_scores(self.backbone, samples, self.spec)).tolist()
        return places

    @classmethod
    def tiny(cls, folder: Path) -> Mapping[str, Any]:
        return tiny_keys(folder)


def tiny_keys(folder: Path) -> Mapping[str, Any]:
    """Keys that name a small checkpoint with random weights, written into `folder`."""
    path = str(tiny_clip(folder))
    return {"path": path, "processor": path}


def load_backbone(spec: PickScoreRankSpec, device: torch.device, dtype: torch.dtype, shared: Shared) -> Backbone:
    """The backbone, one for all entries that name the same files."""
    files = (spec.path, spec.revision, spec.processor, spec.processor_revision)
    backbone: Backbone = shared(f"pickscore:{files}", lambda: Backbone.load(*files, device, dtype))
    return backbone


def pick_scores(backbone: Backbone, samples: Sequence[Sample], spec: PickScoreRankSpec) -> Tensor:
    """Scores `(N,)` float64."""
    media, prompts = [sample.media for sample in samples], [sample.row.prompt for sample in samples]
    return backbone.temperature * backbone.cosines(media, prompts, spec) / spec.divide


def ranks(scores: Tensor) -> Tensor:
    """Ranks `(K,)` float64 of scores `(K,)`, from 0 up, divided by `K`; equal scores have equal ranks.

    Raises:
        ValueError: a score is not finite, so it has no place.
    """
    if not scores.isfinite().all():
        raise ValueError(f"scores that are not finite have no rank: {scores.tolist()}")
    below = (scores[None, :] < scores[:, None]).sum(1)
    equal = (scores[None, :] == scores[:, None]).sum(1)
    return (below + (equal - 1) / 2).double() / len(scores)
