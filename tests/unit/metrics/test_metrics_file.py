"""`metrics.jsonl` is JSON whatever happens, and means of many processes are numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

from flowfactory.metrics.means import merge
from flowfactory.metrics.table import MetricsFile


def strict(text: str) -> object:
    return json.loads(text, parse_constant=lambda word: (_ for _ in ()).throw(AssertionError(word)))


def test_what_is_not_finite_is_null_and_read_back_as_nan(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0, write=True)
    file.log({"a": math.nan, "b": math.inf, "c": 0.5}, 1)
    assert strict((tmp_path / "metrics.jsonl").read_text()) == {"epoch": 1, "a": None, "b": None, "c": 0.5}
    (line,) = file.lines()
    assert (line["epoch"], line["c"]) == (1, 0.5)
    assert math.isnan(line["a"])
    assert math.isnan(line["b"])


def test_lines_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "a": NaN}\n')
    (line,) = MetricsFile(tmp_path / "metrics.jsonl", 1, write=True).lines()
    assert math.isnan(line["a"])


def test_infinities_of_two_processes_have_a_mean() -> None:
    merged = merge([{"a": (math.inf, 1.0), "b": (1.0, 1.0)}, {"a": (-math.inf, 1.0), "b": (0.0, 1.0)}])
    assert math.isnan(merged["a"])
    assert merged["b"] == 0.5
