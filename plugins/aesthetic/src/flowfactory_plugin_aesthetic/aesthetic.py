"""LAION's aesthetic predictor (Schuhmann 2022) as a reward: linear layers on CLIP's image embedding.

    s(x) = f(i / |i|) / divide,   i = W_i vision(x) of CLIP ViT-L/14, f a row of linear layers

trained on people's ratings of images from 1 to 10 (SAC, LAION-Logos, AVA).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from flowfactory import DifferentiableReward, Row, Sample, Score, Shared, some_frames
from flowfactory_plugin_clip.backbone import Backbone
from flowfactory_plugin_clip.tiny import tiny_clip
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig

from flowfactory_plugin_aesthetic import AestheticSpec, head
from flowfactory_plugin_aesthetic.head import Head

_POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "min": torch.amin, "max": torch.amax}


class Aesthetic(DifferentiableReward):
    """How pleasing an image is."""

    reads: ClassVar[frozenset[str]] = frozenset({"media"})
    spec: AestheticSpec
    backbone: Backbone
    head: Head

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        spec, path = self.spec, self.spec.path
        self.head = head.load(spec.head, spec.head_file, spec.head_revision)
        self.backbone = shared(
            f"clip:{path}@{spec.revision}",  # as `clip` has it
            lambda: Backbone.load(path, spec.revision, path, spec.revision, device, dtype),
        )
        width = self.backbone.model.config.projection_dim
        if width != self.head.width:
            what = f"the predictor {spec.head} is for embeddings of {self.head.width} numbers"
            raise ValueError(f"{what}, and those of {path} have {width}")

    def place(self, device: torch.device) -> None:
        self.backbone.place(device)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        scores: list[float] = self._scores([sample.media for sample in samples], self.backbone.images).tolist()
        return scores

    def value(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        return self._scores(list(media), self.backbone.tensors)

    def _scores(self, media: Sequence[Tensor], embed: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        """Scores `(N,)` float64; of a video, pooled over some of its frames."""
        if not media:
            return torch.zeros(0, dtype=torch.float64)
        frames = [some_frames(one, self.spec.frames) for one in media]
        each = self.head(embed(list(chain(*frames)))) / self.spec.divide
        return torch.stack([_POOLS[self.spec.pool](some) for some in torch.split(each, [len(some) for some in frames])])

    @classmethod
    def tiny(cls, folder: Path) -> Mapping[str, Any]:
        path = tiny_clip(folder)
        width = CLIPConfig.from_pretrained(path).projection_dim
        return {"path": str(path), "head": str(tiny_head(folder / "head.safetensors", width))}


def tiny_head(path: Path, width: int, hidden: Sequence[int] = (24, 16)) -> Path:
    """Write a head of random weights, with the authors' names."""
    drawn = torch.Generator().manual_seed(0)
    sizes = [width, *hidden, 1]
    tensors = {}
    for number, (before, after) in enumerate(pairwise(sizes)):
        place = f"layers.{2 * number}"  # dropout has the numbers between
        tensors[f"{place}.weight"] = torch.randn(after, before, generator=drawn) / before**0.5
        tensors[f"{place}.bias"] = torch.randn(after, generator=drawn)
    save_file(tensors, path)
    return path
