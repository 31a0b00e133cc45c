"""Samples as bytes and back, and bytes that are no samples."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory_plugin_remote.wire import pack, unpack
from flowfactory_scorer.wire import WireError, read
from PIL import Image
from safetensors.torch import save

RECORD = {
    "prompt": "a cat",
    "negative_prompt": None,
    "metadata": {},
    "slot": 0,
    "replica": 0,
    "frames": None,
    "images": [],
}


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def samples() -> list[Sample]:
    row = Row("a “cat”, naïve", "blurry", metadata={"count": 3, "colours": ["red"]})
    return [Sample(row, noise(3, 5, 7), 4, 1), Sample(Row("a dog"), noise(2, 3, 6, 4), 5, 0)]


@pytest.mark.parametrize(("encoding", "error"), [("png", 0.5 / 255 + 1e-6), ("float32", 0.0)])
def test_samples_return_as_they_left(encoding: Any, error: float, tmp_path: Path) -> None:
    returned = unpack(pack(samples(), encoding), tmp_path)
    assert [(s.row, s.slot, s.replica) for s in returned] == [(s.row, s.slot, s.replica) for s in samples()]
    for one, other in zip(returned, samples(), strict=True):
        assert one.media.dtype == torch.float32
        torch.testing.assert_close(one.media, other.media, atol=error, rtol=0)


def png(width: int, height: int) -> torch.Tensor:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def body(tensors: dict[str, torch.Tensor], records: Any, encoding: str = "png", version: str = "1") -> bytes:
    return save(tensors, {"version": version, "samples": json.dumps(records), "encoding": encoding})


def test_a_sound_body_is_read() -> None:
    """What the broken ones below would be, were they whole."""
    (record,) = read(body({"0.0": png(4, 3), "image.0": png(2, 2)}, [{**RECORD, "images": [0]}]))
    assert (record.prompt, record.media.shape, [image.shape for image in record.images]) == (
        "a cat",
        (3, 4, 3),
        [(2, 2, 3)],
    )


class Dangerous:
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("something was unpickled",))


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\xff" * 100,
        pickle.dumps(Dangerous()),
        pack(samples(), "png")[:-5],
        save({"0": torch.zeros(2)}),
        body({}, [RECORD]),
        body({"0.0": png(4, 4)[:-26]}, [RECORD]),
        body({"0.0": torch.zeros(50, dtype=torch.uint8)}, [RECORD]),
        body({"0.0": png(4, 4)}, [{**RECORD, "prompt": 3}]),
        body({"0.0": png(4, 4)}, [{**RECORD, "frames": 0}]),
        body({"0.0": png(4, 4)}, [{**RECORD, "frames": 10**12}]),
        body({"0.0": png(4, 4)}, [{**RECORD, "slot": 1.5}]),
        body({"0.0": png(4, 4), "0.1": png(5, 4)}, [{**RECORD, "frames": 2}]),
        body({"0.0": png(4, 4)}, {"prompt": "a cat"}),
        body({"0.0": png(4, 4)}, [[]]),
        body({"0": torch.zeros(3, 4)}, [RECORD], "float32"),
        body({"0": torch.zeros(4, 4, 4)}, [RECORD], "float32"),
        body({"0": torch.zeros(3, 4, 4, dtype=torch.int8)}, [RECORD], "float32"),
        body({"0.0": png(4, 4)}, [{**RECORD, "images": [0]}]),
        body({"0.0": png(4, 4)}, [{**RECORD, "images": ["0"]}]),
        body({"0.0": png(4, 4)}, [{**RECORD, "images": 1}]),
        body({"0.0": png(4, 4), "image.0": torch.zeros(50, dtype=torch.uint8)}, [{**RECORD, "images": [0]}]),
        pack(samples(), "png").replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
    ],
)
def test_other_bytes_are_refused(broken: bytes) -> None:
    with pytest.raises(WireError):
        read(broken)


@pytest.mark.parametrize("version", ["0", "2", "one"])
def test_another_protocol_is_refused_in_words(version: str) -> None:
    with pytest.raises(WireError, match=f"of protocol {version}, and this reads protocol 1"):
        read(body({"0.0": png(4, 4)}, [RECORD], version=version))


@pytest.mark.parametrize("tensor", ["0.0", "image.0"])
def test_an_image_that_claims_to_be_huge_is_refused(tensor: str) -> None:
    with pytest.raises(WireError, match="4 x 4 pixels"):
        read(body({tensor: png(4, 4)}, [RECORD]), 15)
