"""Encoded prompts: every distinct row is encoded once, before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from flowfactory.adapter import Adapter
from flowfactory.types import Conditions, Row

BATCH = 8
"""Rows an adapter encodes at a time."""


class ConditionStore:
    """The conditions of some rows, one by one, in memory."""

    def __init__(self, adapter: Adapter[Any], rows: Sequence[Row], advance: Callable[[int], None]) -> None:
        self._adapter = adapter
        self._parts: list[Conditions] = []
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            encoded = adapter.encode(chunk)
            self._parts += [{k: v[i : i + 1].cpu() for k, v in encoded.items()} for i in range(len(chunk))]
            advance(len(chunk))

    def batch(self, rows: Sequence[int], device: torch.device) -> Conditions:
        """Conditions of the rows with these numbers, repeats allowed, on `device`."""
        joined = self._adapter.collate([self._parts[row] for row in rows])
        return {name: tensor.to(device, non_blocking=True) for name, tensor in joined.items()}
