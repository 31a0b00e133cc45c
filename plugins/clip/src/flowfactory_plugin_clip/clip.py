"""CLIP similarity (Radford et al. 2021, arXiv:2103.00020) as a reward: `scale * cos(prompt, image)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from flowfactory import DifferentiableReward, Row, Sample, Score, Shared
from torch import Tensor

from flowfactory_plugin_clip import CLIPSpec, SimilaritySpec
from flowfactory_plugin_clip.backbone import Backbone
from flowfactory_plugin_clip.tiny import tiny_clip


class Similarity(DifferentiableReward):
    """How well an image fits its prompt, by a backbone that `load` reads."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})
    spec: SimilaritySpec
    backbone: Backbone

    def place(self, device: torch.device) -> None:
        self.backbone.place(device)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        media, prompts = [sample.media for sample in samples], [sample.row.prompt for sample in samples]
        scores: list[float] = (self.spec.scale * self.backbone.cosines(media, prompts, self.spec)).tolist()
        return scores

    def value(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        prompts = [row.prompt for row in rows]
        return self.spec.scale * self.backbone.cosines(list(media), prompts, self.spec, exact=False)


class CLIP(Similarity):
    """The cosine of a published CLIP."""

    spec: CLIPSpec

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        path, revision = self.spec.path, self.spec.revision
        self.backbone = shared(
            f"clip:{path}@{revision}", lambda: Backbone.load(path, revision, path, revision, device, dtype)
        )

    @classmethod
    def tiny(cls, folder: Path) -> Mapping[str, Any]:
        return {"path": str(tiny_clip(folder))}
