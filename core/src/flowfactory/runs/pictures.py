"""Pictures that a run has left, opened with care: the folder may come from anybody. Imports no torch."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

PIXELS = 1 << 27
"""Most pixels of a picture: 400 MB in memory, and a video of 121 frames of 1280 x 720 side by side."""


class PictureError(Exception):
    """A file is not a picture as runs write them."""


def inside(folder: Path, file: Path) -> bool:
    """Whether there is such a file in a folder, and no link leads out of it."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def opened(path: Path) -> Image.Image:
    """A picture, decoded.

    Raises:
        PictureError: it is not a PNG of three colours, is damaged, or has more than `PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `PIXELS` is the limit
            picture = Image.open(path, formats=["PNG"])
        with picture:
            if picture.mode != "RGB" or picture.width * picture.height > PIXELS:
                raise PictureError(f"{path.name} is {picture.mode} of {picture.width} x {picture.height} pixels")
            picture.load()
    except PictureError:
        raise
    except Exception as error:  # Pillow raises many kinds on broken files
        raise PictureError(f"{path.name} is damaged: {error}") from error
    return picture
