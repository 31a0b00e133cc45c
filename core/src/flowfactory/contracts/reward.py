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
    """Scores each sample on its own; gets batches of any size.

    reads: what a score may depend on: "media", "prompt", "images", "latents", "conditions", or names of metadata
        columns. Media that no reward of a run reads are not decoded.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def reach(self) -> None:
        """Check that what it needs from elsewhere is there, e.g. its server; called before a model is loaded."""
        return None

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        """Load backbones onto `device`; called once, before the first score.

        Backbones obtained from `shared` are the same object for every reward that asks with the same key and has the
        same device and dtype.
        """
        return None

    def place(self, device: torch.device) -> None:
        """Move backbones to `device`, wherever they are; called between the phases of an epoch, never while scoring."""
        return None

    @abstractmethod
    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        """One score per sample, in order. Called without gradients, in another thread than `load`, in several at
        once only where the spec sets `workers`. The samples are copies made for this reward.

        Raises:
            Exception: of any kind; the samples then have no score, and `on_error` decides what happens.
        """

    @classmethod
    def tiny(cls, folder: Path) -> Mapping[str, Any]:
        """Keys with which it works offline, for tests; writes what they name, as a small checkpoint, into `folder`."""
        return {}


class GroupReward(Reward):
    """Scores the samples of one prompt against each other: `score` gets exactly one whole group.

    alone: whether it can score a group of one. Evaluations have one sample a prompt and leave out those that cannot.
    """

    alone: ClassVar[bool] = False


class DifferentiableReward(Reward):
    """Has a gradient with respect to the media; its spec extends `DifferentiableSpec`. Every sample has a score."""

    @abstractmethod
    def value(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        """The scores `(B,)`, differentiable in `media`, of images `(B, 3, H, W)` or frames `(B, F, 3, H, W)`.

        They are float32 in [0, 1]. Move them to the reward's device, without rounding or PIL, which end the gradient.
        """

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        """The scores that `value` gives, of media that may lie on the reward's device."""
        if not samples:
            return []
        media, rows = torch.stack([sample.media for sample in samples]), [sample.row for sample in samples]
        return list(map(float, self.value(media, rows)))
