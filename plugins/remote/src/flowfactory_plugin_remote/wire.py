"""How samples travel: one safetensors file, never a pickle.

Its metadata entry `samples` is JSON: a list of records with the prompt, the negative prompt, the metadata columns,
slot, replica, and the number of frames (null for an image). Sample `i` is the tensor `i` (float32), or its frames are
`i.0`, `i.1`, … (uint8: the bytes of one PNG each).
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from flowfactory import Row, Sample, to_image
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

Encoding = Literal["png", "float32"]

PIXELS = 128_000_000
"""Most pixels of one request, where nobody says otherwise: small PNGs can claim to be huge. Each takes 12 bytes."""
_LENGTH = 8
"""Bytes at the start of a safetensors file that say how long its header is."""


class WireError(ValueError):
    """These bytes are not samples."""


def pack(samples: Sequence[Sample], encoding: Encoding) -> bytes:
    """Samples as bytes. Condition images stay behind: they are files of this machine."""
    tensors: dict[str, Tensor] = {}
    records = []
    for number, sample in enumerate(samples):
        video = sample.media.dim() == 4
        frames = sample.media if video else sample.media[None]
        if encoding == "float32":
            tensors[str(number)] = sample.media.float().contiguous().clone()
        else:
            tensors |= {f"{number}.{i}": _png(frame) for i, frame in enumerate(frames)}
        records.append(
            {
                "prompt": sample.row.prompt,
                "negative_prompt": sample.row.negative_prompt,
                "metadata": dict(sample.row.metadata),
                "slot": sample.slot,
                "replica": sample.replica,
                "frames": len(frames) if video else None,
            }
        )
    return save(tensors, {"samples": json.dumps(records), "encoding": encoding})


def unpack(body: bytes, max_pixels: int | None = None) -> list[Sample]:
    """The samples that `pack` made into bytes.

    Args:
        max_pixels: of all images and frames together, `PIXELS` when absent; counted before any is decoded.

    Raises:
        WireError: the bytes are something else, or an image in them is broken, or there are too many pixels.
    """
    try:
        header = json.loads(body[_LENGTH : _LENGTH + int.from_bytes(body[:_LENGTH], "little")])["__metadata__"]
        tensors, records = load(body), json.loads(header["samples"])
        _count(tensors, PIXELS if max_pixels is None else max_pixels)
        return [_sample(tensors, i, record, header["encoding"]) for i, record in enumerate(records)]
    except WireError:
        raise
    except (SafetensorError, ValueError, LookupError, TypeError, OverflowError, RuntimeError) as error:
        raise WireError(f"these bytes are not samples: {type(error).__name__}: {error}") from error


def _sample(tensors: Mapping[str, Tensor], number: int, record: Mapping[str, Any], encoding: str) -> Sample:
    prompt, negative, metadata = record["prompt"], record["negative_prompt"], record["metadata"]
    slot, replica, count = record["slot"], record["replica"], record["frames"]
    texts = isinstance(prompt, str) and isinstance(negative, str | None) and isinstance(metadata, dict)
    numbers = all(type(value) is int for value in (slot, replica))
    if not texts or not numbers or not (count is None or (type(count) is int and count >= 1)):
        raise WireError(f"sample {number} is described wrongly")
    if encoding == "float32":
        media = tensors[str(number)]
        if media.dtype != torch.float32 or media.dim() != (3 if count is None else 4) or media.shape[-3] != 3:
            raise WireError(f"sample {number} has the shape {tuple(media.shape)} of {media.dtype}")
    else:
        media = torch.stack([_image(tensors[f"{number}.{i}"], number) for i in range(1 if count is None else count)])
        media = media[0] if count is None else media
    return Sample(Row(prompt, negative, metadata=metadata), media, slot, replica)


def _png(frame: Tensor) -> Tensor:
    buffer = io.BytesIO()
    to_image(frame).save(buffer, format="PNG", compress_level=1)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _count(tensors: Mapping[str, Tensor], most: int) -> None:
    """See how many pixels there are, or will be."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float32:
            height, width = tensor.numel() // 3, 1
        else:
            height, width = _size(tensor, name)
        total += height * width
        if total > most:
            what = f"with image {name} of {height} x {width} pixels they are {total} together"
            raise WireError(f"{what}; {most} are allowed")


def _size(data: Tensor, name: str) -> tuple[int, int]:
    """Height and width that a PNG claims."""
    try:
        with _opened(data) as picture:
            return picture.height, picture.width
    except Exception as error:  # Pillow raises many kinds on broken files
        raise WireError(f"image {name} is malformed: {error}") from error


def _opened(data: Tensor) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
        return Image.open(io.BytesIO(data.numpy().tobytes()), formats=["PNG"])


def _image(data: Tensor, number: int) -> Tensor:
    """An image `(3, H, W)` float32 in [0, 1] from the bytes of a PNG."""
    try:
        with _opened(data) as picture:
            array = np.asarray(picture.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on broken files
        raise WireError(f"an image of sample {number} is malformed: {error}") from error
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
