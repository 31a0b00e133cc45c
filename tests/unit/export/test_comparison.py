"""Whether scores differ: intervals that hold what they promise, pairs kept together, and the table."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flowfactory.export import comparison
from flowfactory.export.comparison import Compared, Mean, compared, markdown


def column(*values: float) -> comparison.Floats:
    return np.array(values)[:, None]


def found(base: comparison.Floats, trained: comparison.Floats) -> Compared:
    made = compared("r", base, trained)
    assert made is not None
    return made


def test_samples_of_a_prompt_are_averaged_and_prompts_compared() -> None:
    base = np.array([[0.0, 1.0], [0.25, 0.25], [1.0, 1.0]])
    trained = np.array([[1.0, 1.0], [0.0, 0.25], [1.0, 1.0]])
    made = found(base, trained)
    assert (made.prompts, made.better, made.worse) == (3, 1, 1)
    assert made.base.value == pytest.approx((0.5 + 0.25 + 1) / 3)
    assert made.trained.value == pytest.approx((1 + 0.125 + 1) / 3)
    assert made.difference.value == pytest.approx((0.5 - 0.125) / 3)


def test_pairs_stay_together() -> None:
    """Prompts differ much, and each is better by the same: of the difference there is no doubt."""
    base = column(*np.linspace(0, 100, 50))
    made = found(base, base + 1)
    assert made.difference == Mean(pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert made.base.high - made.base.low > 10


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 1000)
    drawn, held, times = np.random.default_rng(1), 0, 400
    for _ in range(times):
        base = drawn.normal(0, 2, (20, 1))
        difference = found(base, base + drawn.normal(0.3, 1, (20, 1))).difference
        held += difference.low <= 0.3 <= difference.high
    assert 0.91 < held / times < 0.98


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(2).normal(5, 3, 400)
    made = found(column(*np.zeros(400)), column(*values)).trained
    error = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert made.value == pytest.approx(values.mean())
    assert (made.low, made.high) == (
        pytest.approx(values.mean() - error, abs=0.03),
        pytest.approx(values.mean() + error, abs=0.03),
    )


def test_prompts_without_both_scores_take_no_part() -> None:
    made = found(column(0.0, math.nan, 1.0), column(1.0, 5.0, math.nan))
    assert (made.prompts, made.difference.value) == (1, 1.0)
    assert compared("r", column(math.nan), column(1.0)) is None
    halves = found(np.array([[0.0, math.nan]]), np.array([[1.0, 3.0]]))
    assert (halves.base.value, halves.trained.value) == (0.0, 2.0)


def test_one_prompt_has_a_mean_and_no_interval() -> None:
    made = found(column(0.25), column(0.75))
    assert math.isnan(made.difference.low)
    assert made.as_json()["difference"] == {"value": 0.5, "low": None, "high": None}
    assert "| `r` | 1 | 0.250 | 0.750 | +0.500 | 1 / 0 |" in markdown([made], "note")


def test_the_table_can_be_pasted() -> None:
    row = Compared("a/b", 54, 0, Mean(0.5, 0.4, 0.6), Mean(2e5, 1e5, 3e5), Mean(-0.001, -0.002, 0), 1, 53)
    assert markdown([row], "A note.").splitlines() == [
        "| reward | prompts | base | trained | difference | better / worse |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `a/b` | 54 | 0.500 [0.400, 0.600] | 2e+05 [1e+05, 3e+05] | -0.001 [-0.002, +0.000] | 1 / 53 |",
        "",
        "A note.",
    ]
