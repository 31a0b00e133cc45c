"""`metrics.jsonl`: what is read of it, and what is said of a line that is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from flowfactory.errors import RunError
from flowfactory.metrics.table import MetricsFile, read_lines

LINES = '{"epoch": 0, "a": 1.0}\n{"epoch": 1, "a": 2.0}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text(LINES)
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize("end", ['{"epoch": 2, "a"', "\0\0\0\0", "[]", "\ufffd"])
def test_what_a_kill_left_of_the_last_line_is_made_again(file: Path, end: str) -> None:
    file.write_text(LINES + end)
    assert [line["epoch"] for line in read_lines(file)] == [0, 1]
    MetricsFile(file, 1, write=True)
    assert file.read_text() == LINES


@pytest.mark.parametrize("line", [b"[1, 2]", b"null", b'{"a": 1}', b"\xff\xfe", b"{", b'{"epoch": "x"}'])
def test_another_line_that_is_none_is_named(file: Path, line: bytes) -> None:
    file.write_bytes(line + b"\n" + LINES.encode())
    with pytest.raises(RunError, match=r"metrics.jsonl:1: expected the metrics of an epoch"):
        MetricsFile(file, 1, write=True)


def test_lost_lines_are_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.unlink()
    MetricsFile(file, 3, write=True)
    assert "metrics.jsonl has no line of epoch 0, nor of 2 others" in caplog.text
    assert read_lines(file) == []


def test_a_line_without_its_evaluation_is_taken_back(file: Path) -> None:
    table = MetricsFile(file, 1, write=True)
    assert table.take_back(2) is None
    assert table.take_back(1) == {"a": 2.0}
    assert table.lines() == [{"epoch": 0, "a": 1.0}]
    table.log({"eval/a/mean": 1.0}, 1)
    assert table.take_back(1) is None
