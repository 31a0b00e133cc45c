"""Whether scores of the same prompts differ, before and after: means, and how sure they are. Imports no torch.

Prompts are what is drawn: the samples of one are averaged first. Intervals are of the paired bootstrap (Efron 1979):
prompts are drawn again with replacement, before and after together, and the middle 95 % of the means that result are
kept. Of `n` prompts these are too narrow by the root of `(n - 1) / n` (Hesterberg 2015, arXiv:1411.5279), by which
they are divided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
METHOD = f"paired bootstrap over prompts, {RESAMPLES} resamples, {LEVEL:.0%}"
AT_ONCE = 100
"""Resamples that are drawn together."""

Floats = NDArray[np.float64]


@attrs.frozen
class Mean:
    """A mean, and the interval it lies in; NaN of fewer than two prompts, which say nothing of others."""

    value: float
    low: float
    high: float


@attrs.frozen
class Compared:
    """A score before and after.

    prompts: how many have both. failed: how many the reward failed for, that are left out.
    better, worse: for how many it rose, and fell.
    """

    label: str
    prompts: int
    failed: int
    base: Mean
    trained: Mean
    difference: Mean
    better: int
    worse: int

    def as_json(self) -> dict[str, object]:
        """For programs; what is not known is null."""
        return {
            name: {k: v if math.isfinite(v) else None for k, v in value.items()} if isinstance(value, dict) else value
            for name, value in attrs.asdict(self).items()
            if name != "label"
        }


def compared(label: str, base: Floats, trained: Floats, failed: int = 0) -> Compared | None:
    """Compare the scores `(P, n)` of `P` prompts; NaN where there is none. None where no prompt has both."""
    before, after = _by_prompt(base), _by_prompt(trained)
    both = ~(np.isnan(before) | np.isnan(after))
    before, after = before[both], after[both]
    if not len(before):
        return None
    one, other, difference = _intervals([before, after, after - before])
    better, worse = int((after > before).sum()), int((after < before).sum())
    return Compared(label, len(before), failed, one, other, difference, better, worse)


def _by_prompt(scores: Floats) -> Floats:
    """The mean `(P,)` of each prompt's scores."""
    known = ~np.isnan(scores)
    count = known.sum(1)
    sums = np.where(known, scores, 0.0).sum(1)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


def _intervals(columns: Sequence[Floats]) -> list[Mean]:
    """The mean of each column and its interval, by the same resamples of their rows."""
    count, drawn = len(columns[0]), np.random.default_rng(SEED)
    means = [math.fsum(column) / count for column in columns]
    if count < 2:
        return [Mean(mean, math.nan, math.nan) for mean in means]
    resampled: list[list[Floats]] = [[] for _ in columns]
    for _ in range(RESAMPLES // AT_ONCE):
        rows = drawn.integers(0, count, (AT_ONCE, count))
        for found, column in zip(resampled, columns, strict=True):
            found.append(column[rows].mean(1))
    return [_interval(mean, np.concatenate(found), count) for mean, found in zip(means, resampled, strict=True)]


def _interval(mean: float, resampled: Floats, count: int) -> Mean:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - mean
    wider = math.sqrt(count / (count - 1))
    return Mean(mean, mean + wider * float(low), mean + wider * float(high))


def markdown(rows: Sequence[Compared], note: str) -> str:
    """A table to paste, and a line beneath it."""
    head = ("reward", "prompts", "base", "trained", "difference", "better / worse")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        sums = f"{row.better} / {row.worse}"
        cells = (_cell(row.base), _cell(row.trained), _cell(row.difference, sign="+"))
        lines.append((f"`{row.label}`", str(row.prompts), *cells, sums))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def _cell(mean: Mean, sign: str = "") -> str:
    """`0.512 [0.430, 0.594]`."""
    if math.isnan(mean.low):
        return _number(mean.value, sign)
    return f"{_number(mean.value, sign)} [{_number(mean.low, sign)}, {_number(mean.high, sign)}]"


def _number(value: float, sign: str) -> str:
    return f"{value:{sign}.3f}" if 1e-2 <= abs(value) < 1e4 or value == 0 else f"{value:{sign}.3g}"
