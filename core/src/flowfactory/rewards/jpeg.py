"""How well an image compresses: the rewards of DDPO (Black et al. 2023, arXiv:2305.13301, section 5).

    incompressibility = bytes of the JPEG at quality 95 / 1000,   compressibility = -incompressibility

They need no model, so they are what a first run and most tests are made with.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from flowfactory.builtin import JpegSpec
from flowfactory.contracts.reward import Reward, Score
from flowfactory.contracts.types import Sample
from flowfactory.runs.media import some_frames, to_image


class Incompressibility(Reward):
    """Kilobytes (of 1000 bytes) of the sample as a JPEG; of a video, the mean over its frames."""

    reads: ClassVar[frozenset[str]] = frozenset({"media"})
    spec: JpegSpec

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return [self._kilobytes(sample.media) for sample in samples]

    def _kilobytes(self, media: Tensor) -> float:
        frames = some_frames(media, len(media))
        return sum(jpeg_bytes(frame, self.spec.quality) for frame in frames) / len(frames) / 1000


class Compressibility(Incompressibility):
    """The negative of `Incompressibility`: small files score high."""

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return [-self._kilobytes(sample.media) for sample in samples]


def jpeg_bytes(image: Tensor, quality: int) -> int:
    """Size in bytes of an image `(3, H, W)` in [0, 1] as a JPEG."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, format="JPEG", quality=quality)
    return buffer.tell()
