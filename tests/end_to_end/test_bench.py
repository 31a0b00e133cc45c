"""`flowfactory bench`: where the time goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flowfactory.cli import main


def test_bench_measures_and_leaves_nothing_behind(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(spec.parent)
    before = sorted(spec.parent.rglob("*"))
    assert main(["bench", str(spec), "--epochs", "2", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert sorted(spec.parent.rglob("*")) == before
    assert {"sample", "decode", "terms", "update"} <= measured["phases"].keys()
    assert measured["seconds"] == pytest.approx(sum(measured["phases"].values()))
    assert 0.2 < measured["network_share"] <= 1
    assert (measured["forward"], measured["trained"]) == (12 * 4, 12 * 2)
    assert measured["peak_rss"] > 2**27


def test_bench_prints_a_table(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(spec), "--epochs", "1", "--warmup", "0"]) == 0
    said = capsys.readouterr().out
    assert "of it in the network" in said
    assert "4 forward passes and 2 with a backward pass per sample" in said
