"""What the rows of the data show, as latents: read, cut to the run's size, encoded once and kept as prompts are."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError
from torch import Tensor

from flowfactory.conditions.cache import ConditionCache
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions, Row
from flowfactory.errors import RunError, shown
from flowfactory.runs import files

LATENTS = "latents"
"""The one tensor `(1, k, …)` that is kept of a row."""

DEEP = ("I", "F")
"""How Pillow's names of pictures begin that have more than eight bits a colour."""


CLEAR = ("RGBA", "LA", "PA", "RGBa", "La")
"""Pillow's names of pictures that may be transparent."""


@attrs.frozen(eq=False)
class CachedTargets:
    """The latents of what rows show, by number."""

    cache: ConditionCache
    rows: Sequence[Row]

    def batch(self, rows: Sequence[int]) -> Tensor:
        """Those of the rows with these numbers, repeats allowed, `(R, k, …)`: `k` is 1, or 2 for pairs."""
        return torch.cat([self.cache[self.rows[row]][LATENTS] for row in rows])


def target_cache(
    folder: Path, identity: Mapping[str, Any], rows: Sequence[Row], size: Size, say: Callable[[str], None]
) -> ConditionCache:
    """The latents of what some rows show at a size. A row is known by the content of its files.

    Args:
        identity: of the encoder; see `encoder_identity`.
    """
    pillow = ".".join(importlib.metadata.version("pillow").split(".")[:2])
    own = {**identity, "encoded": "media", "pillow": pillow}
    return ConditionCache(folder, own, rows, say, functools.partial(target_key, size=size))


def target_key(row: Row, size: Size) -> str:
    """What a row shows, by content, and the size it is cut to."""
    return _target_key(row.media, size)


@functools.cache
def _target_key(media: tuple[Path, ...], size: Size) -> str:
    parts = [[files.sha256(file) for file in media], [size.height, size.width, size.frames]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def encode_target(adapter: Adapter[Any], rows: Sequence[Row], size: Size) -> Conditions:
    """The latents of one row, each file by itself, so that they do not depend on what they are encoded with.

    Raises:
        RunError: a file cannot be used.
        ValueError: the model cannot encode media.
    """
    (row,) = rows
    latents = [adapter.encode_media(read_media(file, size)[None], size).float().cpu() for file in row.media]
    return {LATENTS: torch.stack(latents, dim=1)}


def read_media(file: Path, size: Size) -> Tensor:
    """An image `(3, H, W)` or frames `(F, 3, H, W)`, float32 in [0, 1]: scaled to cover the size, the middle cut out.

    Frames are spread evenly over a film, its first and last among them; of one frame, it is the first.

    Raises:
        RunError: naming the file: it is damaged, of a kind that cannot be read, or has too few frames.
    """
    try:
        frames = _films(file)
        total = sum(1 for _ in frames()) if size.frames > 1 else 1
        if total < size.frames:
            raise ValueError(f"it has {total} of the {size.frames} frames that a sample has")
        wanted = {i * (total - 1) // max(1, size.frames - 1) for i in range(size.frames)}
        numbered = zip(range(total), frames(), strict=False)
        media = torch.stack([_cut(frame, size) for number, frame in numbered if number in wanted])
    except Exception as error:  # Pillow and PyAV raise many kinds on broken files
        raise RunError(f"{shown(file)} cannot be used as media: {error}") from error
    return media if size.frames > 1 else media[0]


def _films(file: Path) -> Callable[[], Iterator[Image.Image]]:
    """What shows the pictures of a file one after another, each time from the first on.

    Raises:
        ValueError: nothing that is installed reads it.
    """
    try:
        with Image.open(file):
            return lambda: _pictures(file)
    except UnidentifiedImageError:
        if importlib.util.find_spec("av") is None:
            raise ValueError("it is no picture; videos are read where PyAV is installed: pip install av") from None
        return lambda: _frames(file)


def _pictures(file: Path) -> Iterator[Image.Image]:
    with Image.open(file) as film:
        if film.mode.startswith(DEEP):
            raise ValueError(f"it has more than eight bits a colour (mode {film.mode}); save it with eight")
        for picture in ImageSequence.Iterator(film):
            yield ImageOps.exif_transpose(picture)


def _frames(file: Path) -> Iterator[Image.Image]:
    import av

    with av.open(str(file)) as container:
        if not container.streams.video:
            raise ValueError("there are no pictures in it")
        for frame in container.decode(video=0):
            yield Image.fromarray(frame.to_ndarray(format="rgb24"))


def _cut(picture: Image.Image, size: Size) -> Tensor:
    """A picture `(3, H, W)` in [0, 1]; what is transparent is on white."""
    if picture.mode in CLEAR or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    cut = ImageOps.fit(picture.convert("RGB"), (size.width, size.height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255
