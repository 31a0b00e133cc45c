"""Samples as bytes and back, and bytes that are no samples."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory_plugin_remote import wire
from flowfactory_plugin_remote.wire import WireError, pack, unpack
from PIL import Image
from safetensors.torch import save

RECORD = {"prompt": "a cat", "negative_prompt": None, "metadata": {}, "slot": 0, "replica": 0, "frames": None}


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def samples() -> list[Sample]:
    row = Row("a “cat”, naïve", "blurry", metadata={"count": 3, "colours": ["red"]})
    return [Sample(row, noise(3, 5, 7), 4, 1), Sample(Row("a dog"), noise(2, 3, 6, 4), 5, 0)]


@pytest.mark.parametrize(("encoding", "error"), [("png", 0.5 / 255 + 1e-6), ("float32", 0.0)])
def test_samples_return_as_they_left(encoding: Any, error: float) -> None:
    returned = unpack(pack(samples(), encoding))
    assert [(s.row, s.slot, s.replica) for s in returned] == [(s.row, s.slot, s.replica) for s in samples()]
    for one, other in zip(returned, samples(), strict=True):
        assert one.media.dtype == torch.float32
        torch.testing.assert_close(one.media, other.media, atol=error, rtol=0)


def png(width: int, height: int) -> torch.Tensor:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def body(tensors: dict[str, torch.Tensor], records: Any, encoding: str = "png") -> bytes:
    return save(tensors, {"samples": json.dumps(records), "encoding": encoding})


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
    ],
)
def test_other_bytes_are_refused(broken: bytes) -> None:
    with pytest.raises(WireError):
        unpack(broken)


def test_an_image_that_claims_to_be_huge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PIXELS", 15)
    with pytest.raises(WireError, match="4 x 4 pixels"):
        unpack(body({"0.0": png(4, 4)}, [RECORD]))
