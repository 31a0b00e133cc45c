"""The rewards `shapes` and `shapes-correct`: grades of `scoring` for images of any multiple of 32 pixels."""

from collections.abc import Sequence

import numpy as np
from flowfactory import Reward, Sample
from numpy.typing import NDArray
from torch import Tensor

from flowfactory_plugin_shapes.scoring import Grade, grade
from flowfactory_plugin_shapes.world import SIZE


class Shapes(Reward):
    """The graded score in [0, 1]."""

    reads = frozenset({"prompt", "media"})

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return [_grade(sample).graded for sample in samples]


class ShapesCorrect(Reward):
    """1 if everything the prompt asks for is right, otherwise 0."""

    reads = frozenset({"prompt", "media"})

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return [float(_grade(sample).correct) for sample in samples]


def _grade(sample: Sample) -> Grade:
    return grade(sample.row.prompt, pixels(sample.media))


def pixels(media: Tensor) -> NDArray[np.float32]:
    """`media` `(3, H, W)` as `(32, 32, 3)`; a larger image is averaged over equal blocks.

    Raises `ValueError` for frames, and for an image that is not square or whose side is no multiple of 32.
    """
    if media.dim() != 3 or media.shape[1] != media.shape[2] or media.shape[1] % SIZE:
        raise ValueError(f"the shapes rewards read square images of 32, 64, 96, … pixels, not {tuple(media.shape)}")
    block = media.shape[1] // SIZE
    blocks = media.float().reshape(3, SIZE, block, SIZE, block)
    return np.ascontiguousarray(blocks.mean(dim=(2, 4)).permute(1, 2, 0).numpy())
