"""Samples as bytes and back; the format is that of `flowfactory_scorer.wire`."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from flowfactory import Row, Sample, to_image
from flowfactory_scorer import PROTOCOL
from flowfactory_scorer.wire import PIXELS, Record, read
from PIL import Image, ImageOps
from safetensors.torch import save
from torch import Tensor

Encoding = Literal["png", "float32"]


def pack(samples: Sequence[Sample], encoding: Encoding) -> bytes:
    """Samples as bytes; a condition image that several share travels once."""
    tensors: dict[str, Tensor] = {}
    records = []
    numbers = {path: number for number, path in enumerate(dict.fromkeys(p for s in samples for p in s.row.images))}
    for path, number in numbers.items():
        with Image.open(path) as picture:
            tensors[f"image.{number}"] = _png(ImageOps.exif_transpose(picture).convert("RGB"))
    for number, sample in enumerate(samples):
        video = sample.media.dim() == 4
        frames = sample.media if video else sample.media[None]
        if encoding == "float32":
            tensors[str(number)] = sample.media.float().contiguous().clone()
        else:
            tensors |= {f"{number}.{i}": _png(to_image(frame)) for i, frame in enumerate(frames)}
        records.append(
            {
                "prompt": sample.row.prompt,
                "negative_prompt": sample.row.negative_prompt,
                "metadata": dict(sample.row.metadata),
                "slot": sample.slot,
                "replica": sample.replica,
                "frames": len(frames) if video else None,
                "images": [numbers[path] for path in sample.row.images],
            }
        )
    return save(tensors, {"version": str(PROTOCOL), "samples": json.dumps(records), "encoding": encoding})


def unpack(body: bytes, folder: Path, max_pixels: int = PIXELS) -> list[Sample]:
    """The samples that `pack` made into bytes; see `samples_of`.

    Raises:
        WireError: the bytes are something else, or an image in them is broken, or there are too many pixels.
    """
    return samples_of(read(body, max_pixels), folder)


def samples_of(records: Sequence[Record], folder: Path) -> list[Sample]:
    """Samples as rewards see them; their condition images are written into `folder`."""
    return [_sample(record, folder, number) for number, record in enumerate(records)]


def _sample(record: Record, folder: Path, number: int) -> Sample:
    media = torch.tensor(record.media).movedim(-1, -3)
    media = media.float() / 255 if media.dtype == torch.uint8 else media
    paths = tuple(folder / f"{number}-{i}.png" for i in range(len(record.images)))
    for path, image in zip(paths, record.images, strict=True):
        Image.fromarray(image).save(path, compress_level=1)
    row = Row(record.prompt, record.negative_prompt, images=paths, metadata=record.metadata)
    return Sample(row, media.contiguous(), record.slot, record.replica)


def _png(image: Image.Image) -> Tensor:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
