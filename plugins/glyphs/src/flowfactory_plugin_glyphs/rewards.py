"""The reward `glyphs`: an image beside the word in the font that the checkpoint has learned."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from flowfactory import Reward, Sample
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from flowfactory_plugin_glyphs.writing import AWAY, HEIGHT, POINTS, WIDTH, asked, ink


class Glyphs(Reward):
    """The greatest correlation, 0 to 1, of the image's darkness with the word at any size and place it may have.

    It knows one font and no language. So what a reader of text can be deceived by, extra strokes, other shapes, grey
    clouds, costs here: watched beside such a reward, it falls where that is all that was learned.
    """

    reads = frozenset({"prompt", "media"})

    def score(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        return [likeness(darkness(sample.media), asked(sample.row.prompt)) for sample in samples]


def darkness(media: Tensor) -> NDArray[np.float32]:
    """How dark an image `(3, H, W)` is, `(16, 64)`: another size is first made that of this world."""
    grey = media.float().mean(dim=0)[None, None]
    if grey.shape[2:] != (HEIGHT, WIDTH):
        grey = F.interpolate(grey, size=(HEIGHT, WIDTH), mode="bilinear", antialias=True)
    dark: NDArray[np.float32] = 1 - grey[0, 0].numpy()
    return dark


def likeness(dark: NDArray[np.float32], word: str) -> float:
    """The greatest correlation of an image's darkness `(16, 64)` with a word, no less than 0."""
    image = _standard(dark)
    return max(0.0, float((_shapes(word) @ image).max()))


@functools.lru_cache(maxsize=256)  # 180 kB each
def _shapes(word: str) -> NDArray[np.float32]:
    """A word at every size, and at every place within half a pixel, each standardised: `(shapes, 1024)`."""
    across, down = (np.arange(-away, away + 0.25, 0.5) for away in AWAY)
    places = itertools.product(POINTS, across, down)
    return np.stack([_standard(ink(word, points, float(x), float(y))) for points, x, y in places])


def _standard(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of mean 0 and length 1; of one value everywhere: 0."""
    centred = (values - values.mean()).ravel()
    length = np.linalg.norm(centred)
    return centred / length if length > 1e-6 else np.zeros_like(centred)
