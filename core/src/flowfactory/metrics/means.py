"""Means of what is measured in pieces, over micro-batches and over processes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Means:
    """Weighted means of named scalars. Values stay on their device until read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Take note of `values`, each a scalar."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value.detach())) + value.detach() * weight
            self._weights[name] += weight

    def totals(self) -> dict[str, tuple[float, float]]:
        """Weighted sum and weight of each name."""
        return {name: (float(total), self._weights[name]) for name, total in self._sums.items()}


def merge(totals: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """The mean of each name over the totals of several processes, which need not all have it."""
    names = list(dict.fromkeys(name for one in totals for name in one))
    means = {}
    for name in names:
        values, weights = zip(*(one[name] for one in totals if name in one), strict=True)
        # `fsum` raises where infinities meet.
        total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
        means[name] = total / math.fsum(weights)
    return means
