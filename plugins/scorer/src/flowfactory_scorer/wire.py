"""How samples travel: one safetensors file, never a pickle.

Its metadata are strings: `version`; `encoding`, "png" or "float32"; and `samples`, JSON: a list of records with the
prompt, the negative prompt, the metadata columns, slot, replica, the number of frames (null for an image), and which
condition images belong to the sample, by number. Sample `i` is the tensor `i` (float32, channels first), or its frames
are `i.0`, `i.1`, … (uint8: the bytes of one PNG each). Condition image `k` is the tensor `image.k`, a PNG too.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from flowfactory_scorer import PROTOCOL

PIXELS = 128_000_000
"""Most pixels of one request, where nobody says otherwise: small PNGs can claim to be huge. Each takes 12 bytes."""
LENGTH = 8
"""Bytes at the start of a safetensors file that say how long its header is."""
TYPES: Mapping[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "F32": np.dtype("<f4")}


class WireError(ValueError):
    """These bytes are not samples."""


@dataclass(frozen=True)
class Record:
    """One sample as it came.

    media: an image `(H, W, 3)` or frames `(F, H, W, 3)`, uint8, or float32 in [0, 1] where it came exactly.
    images: the condition images, `(H, W, 3)` uint8 each.
    """

    prompt: str
    negative_prompt: str | None
    metadata: Mapping[str, Any]
    media: np.ndarray
    images: Sequence[np.ndarray] = ()
    slot: int = 0
    replica: int = 0


def read(body: bytes, max_pixels: int = PIXELS) -> list[Record]:
    """The samples in a body.

    Args:
        max_pixels: of all images and frames together, counted before any is decoded.

    Raises:
        WireError: the bytes are something else, or an image in them is broken, or there are too many pixels.
    """
    try:
        tensors, said = _tensors(body)
        if said.get("version") != str(PROTOCOL):
            raise WireError(f"these samples are of protocol {said.get('version')}, and this reads protocol {PROTOCOL}")
        records, exact = json.loads(said["samples"]), said["encoding"] == "float32"
        _count(tensors, max_pixels)
        return [_record(tensors, number, record, exact) for number, record in enumerate(records)]
    except WireError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise WireError(f"these bytes are not samples: {type(error).__name__}: {error}") from error


def _tensors(body: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name, and the metadata of a safetensors file."""
    start = LENGTH + int.from_bytes(body[:LENGTH], "little")
    header = json.loads(body[LENGTH:start])
    said = header.pop("__metadata__")
    return {name: _tensor(body, start, entry) for name, entry in header.items()}, said


def _tensor(body: bytes, start: int, entry: Mapping[str, Any]) -> np.ndarray:
    kind, shape, (first, last) = TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    numbers = [*shape, first, last]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise WireError("a tensor is described wrongly")
    count = 1
    for length in shape:
        count *= length
    if last - first != count * kind.itemsize or start + last > len(body):
        raise WireError("a tensor is not as long as its shape says")
    return np.frombuffer(body, kind, count, start + first).reshape(shape)


def _record(tensors: Mapping[str, np.ndarray], number: int, record: Mapping[str, Any], exact: bool) -> Record:
    prompt, negative, metadata = record["prompt"], record["negative_prompt"], record["metadata"]
    slot, replica, frames, images = record["slot"], record["replica"], record["frames"], record["images"]
    texts = isinstance(prompt, str) and (negative is None or isinstance(negative, str)) and isinstance(metadata, dict)
    numbers = isinstance(images, list) and all(type(value) is int for value in (slot, replica, *images))
    if not texts or not numbers or not (frames is None or (type(frames) is int and frames >= 1)):
        raise WireError(f"sample {number} is described wrongly")
    media = _exact(tensors, number, frames) if exact else _decoded(tensors, number, frames)
    shown = [_image(tensors[f"image.{image}"], f"condition image {image}") for image in images]
    return Record(prompt, negative, metadata, media, shown, slot, replica)


def _exact(tensors: Mapping[str, np.ndarray], number: int, frames: int | None) -> np.ndarray:
    media = tensors[str(number)]
    if media.dtype != np.float32 or media.ndim != (3 if frames is None else 4) or media.shape[-3] != 3:
        raise WireError(f"sample {number} has the shape {media.shape} of {media.dtype}")
    return np.moveaxis(media, -3, -1)


def _decoded(tensors: Mapping[str, np.ndarray], number: int, frames: int | None) -> np.ndarray:
    if frames is None:
        return _image(tensors[f"{number}.0"], f"an image of sample {number}")
    return np.stack([_image(tensors[f"{number}.{i}"], f"an image of sample {number}") for i in range(frames)])


def _count(tensors: Mapping[str, np.ndarray], most: int) -> None:
    """See how many pixels there are, or will be."""
    total = 0
    for name, tensor in tensors.items():
        height, width = (tensor.size // 3, 1) if tensor.dtype == np.float32 else _size(tensor, name)
        total += height * width
        if total > most:
            what = f"with image {name} of {height} x {width} pixels they are {total} together"
            raise WireError(f"{what}; {most} are allowed")


def _size(data: np.ndarray, name: str) -> tuple[int, int]:
    """Height and width that a PNG claims."""
    try:
        with _opened(data) as picture:
            return picture.height, picture.width
    except Exception as error:  # Pillow raises many kinds on broken files
        raise WireError(f"image {name} is malformed: {error}") from error


def _image(data: np.ndarray, name: str) -> np.ndarray:
    """An image `(H, W, 3)` uint8 from the bytes of a PNG."""
    try:
        with _opened(data) as picture:
            return np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on broken files
        raise WireError(f"{name} is malformed: {error}") from error


def _opened(data: np.ndarray) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
        return Image.open(io.BytesIO(data.tobytes()), formats=["PNG"])
