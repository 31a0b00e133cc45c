"""Prompts that are encoded between epochs, and when the encoders go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flowfactory.conditions.cache import ConditionCache, never
from flowfactory.contracts.types import Conditions, Row
from flowfactory.metrics.clock import Clock
from flowfactory.training.encoding import encode_more

CPU = torch.device("cpu")
ROWS = [Row(f"prompt {number}") for number in range(4)]


class Encoders:
    """An adapter that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def encode(self, rows: Sequence[Row]) -> Conditions:
        self.asked.append(rows[0].prompt)
        return {"length": torch.tensor([[float(len(rows[0].prompt))]])}

    def place(self, device: torch.device) -> None:
        self.asked.append(device.type)

    def drop_encoders(self) -> None:
        self.asked.append("drop")


class Quiet:
    """A display that shows nothing."""

    def phase(self, *_: Any) -> Any:
        return nullcontext(SimpleNamespace(advance=lambda count: None))


@pytest.mark.parametrize("offload", [(), ("vae",)])
def test_encoders_go_with_the_last_prompt_whoever_has_encoded_it(offload: tuple[str, ...], tmp_path: Path) -> None:
    spec: Any = SimpleNamespace(memory=SimpleNamespace(offload=offload))
    adapter, other = Encoders(), Encoders()
    ours, theirs = (ConditionCache(tmp_path, {"encoder": "lengths"}, ROWS, print) for _ in range(2))

    def more(rows: Sequence[Row]) -> bool:
        quiet: Any = Quiet()
        return encode_more(spec, adapter, ours, rows, torch.device("meta"), quiet, Clock(CPU), nullcontext(never))  # type: ignore[arg-type]

    there, back = (["meta"], ["cpu"]) if offload else ([], [])
    assert more(ROWS[:1])
    assert adapter.asked == [*there, "prompt 0", *back]
    assert more(ROWS[:1])
    assert adapter.asked == [*there, "prompt 0", *back]
    theirs.fill(other.encode, lambda count: None)
    assert other.asked == ["prompt 1", "prompt 2", "prompt 3"]
    assert not more(ROWS[1:2])
    assert adapter.asked == [*there, "prompt 0", *back, "drop"]
