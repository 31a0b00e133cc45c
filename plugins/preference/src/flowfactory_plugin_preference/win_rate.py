"""Win rates of a group's members from pairwise comparisons, as in Pref-GRPO (Wang et al. 2025, arXiv:2508.20751).

    r_i = (wins_i + ties_i / 2) / comparisons_i        rounded to three decimals; 0 for a member never compared

An unclear reply counts as a tie.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import attrs

Outcome = Literal["first", "second", "tie", "unclear"]

_ANSWERS: dict[str, Outcome] = {"first": "first", "second": "second", "tie": "tie"}
_LAST_LINE = re.compile(r"\W*(?:answer\s*:\s*)?\W*(first|second|tie)\W*", re.IGNORECASE)


@attrs.frozen
class Comparison:
    """The judge was shown members `first` and `second` of a group, in this order."""

    first: int
    second: int
    outcome: Outcome


def pairs(count: int) -> Sequence[tuple[int, int]]:
    """Every ordered pair of `count` members: each two are shown in both orders, so that a judge's liking for one
    position favours nobody."""
    return [(i, j) for i in range(count) for j in range(count) if i != j]


def outcome(reply: str) -> Outcome:
    """What the last line of a reply says; "unclear" when it says nothing of the kind."""
    lines = reply.strip().splitlines()
    found = _LAST_LINE.fullmatch(lines[-1]) if lines else None
    return _ANSWERS[found.group(1).lower()] if found else "unclear"


def win_rates(count: int, comparisons: Iterable[Comparison]) -> list[float]:
    """The win rate of each of `count` members."""
    points, compared = [0.0] * count, [0] * count
    for one in comparisons:
        share = {"first": 1.0, "second": 0.0, "tie": 0.5, "unclear": 0.5}[one.outcome]
        points[one.first] += share
        points[one.second] += 1 - share
        compared[one.first] += 1
        compared[one.second] += 1
    return [round(won / seen, 3) if seen else 0.0 for won, seen in zip(points, compared, strict=True)]
