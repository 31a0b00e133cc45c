"""Runs at a glance."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from flowfactory.cli.main import main
from flowfactory.metrics import overview
from flowfactory.runs import folder as folders
from runs import lay_run


def run(place: Path, name: str, epochs: int, lines: list[dict[str, float]], when: int = 0) -> Path:
    folder = lay_run(place / name, epochs)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for file in (folder / "plan.json", folder / "metrics.jsonl"):
        os.utime(file, (when, when))
    return folder


def line(epoch: int, ocr: float, prefix: str = "reward", **more: float) -> dict[str, float]:
    return {"epoch": epoch, f"{prefix}/score": 2 * ocr - 1.0, f"{prefix}/ocr/mean": ocr} | more


def test_how_far_a_run_is_and_what_it_reached(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", 3, [line(1, 0.5, **{"time/sample": 60.0}), line(2, 0.75, **{"time/update": 5.0})])
    found = overview.of(folder)
    assert (found.state, found.epoch, found.epochs) == ("stopped", 2, 3)
    assert (found.first, found.last, found.seconds) == (0.0, 0.5, 65.0)
    assert found.row() == ("a", "stopped", "2 of 3", "0.000 -> 0.500", "1 min 05 s")
    with folders.owned(folder):
        assert overview.of(folder).state == "running"
    assert overview.of(folder).state == "stopped"


def test_held_out_prompts_count_where_there_are_any(tmp_path: Path) -> None:
    lines = [line(0, 0.25, "eval"), line(1, 0.9), line(2, 0.9) | line(2, 1.0, "eval")]
    found = overview.of(run(tmp_path, "a", 2, lines))
    assert (found.state, found.first, found.last) == ("finished", -0.5, 1.0)


def test_the_newest_is_first_and_what_cannot_be_read_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "old", 1, [line(1, 1.0)], when=1)
    run(tmp_path, "new", 1, [], when=3)
    (run(tmp_path, "odd", 1, [], when=2) / "plan.json").write_text("{}")
    os.utime(tmp_path / "odd/plan.json", (2, 2))
    (tmp_path / "no run").mkdir()
    assert main(["runs", str(tmp_path)]) == 0
    rows = [words.split() for words in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["run", "new", "odd", "old"]
    assert "is not the plan of a run" in " ".join(rows[2])
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert [one["state"] for one in json.loads(capsys.readouterr().out)][::2] == ["stopped", "finished"]
    assert main(["runs", str(tmp_path / "no run")]) == 0
    assert "there are no runs in" in capsys.readouterr().err
