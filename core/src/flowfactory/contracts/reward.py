"""The contract of a reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from flowfactory.contracts.types import Row, Sample

T = TypeVar("T")

Shared = Callable[[str, Callable[[], Any]], Any]
"""`shared(key, factory)`: the one instance of a backbone, made by the first reward that asks for it."""

Score = float | None
"""Higher is better; `None` means the reward does not apply to the sample."""


class Reward(ABC):
    """Scores each sample on its own; sees batches of any size.

    reads: what a score may depend on: "media", "prompt", "images", "latents", "conditions", or names of metadata
        columns. Media that no reward of a run reads are not decoded.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def reach(self) -> None:
        """See that what the reward needs from elsewhere is there, e.g. its server; called before a model is loaded."""
        return None

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        """Load backbones onto `device`; called once, before the first score.

        Backbones obtained from `shared` are the same object for every reward that asks with the same key and has the
        same device and dtype.
        """
        return None

    def place(self, device: torch.device) -> None:
        """Move backbones to `device`, wherever they are; called between epochs' phases, never while scoring."""
        return None

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        """One score per sample, in order. Called from another thread than `load`, from several at once only where the
        spec asks for `workers`; without gradients. The samples are copies of the reward's own.

        Raises:
            Exception: anything at all; the samples then have no score, and `on_error` says what follows.
        """

    @classmethod
    def tiny(cls, folder: Path) -> Mapping[str, Any]:
        """Keys with which it works offline, for tests; writes what they name, as a small checkpoint, into `folder`."""
        return {}


class GroupReward(Reward):
    """Scores the samples of one prompt against each other: `score` gets exactly one whole group.

    alone: whether a group of one is a group to it. Evaluation makes one sample of each prompt, and asks no other.
    """

    alone: ClassVar[bool] = False


class DifferentiableReward(Reward):
    """Has a gradient with respect to the media; its spec extends `DifferentiableSpec`. Every sample has a score."""

    @abstractmethod
    def value(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        """The scores `(B,)`, differentiable in `media`, of images `(B, 3, H, W)` or frames `(B, F, 3, H, W)`.

        They are float32 in [0, 1], and are to be moved to where the reward computes: rounding and PIL end a gradient.
        """

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        """What `value` says."""
        if not samples:
            return []
        media, rows = torch.stack([sample.media for sample in samples]), [sample.row for sample in samples]
        return list(map(float, self.value(media, rows)))
