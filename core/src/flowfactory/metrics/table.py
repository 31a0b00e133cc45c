"""`metrics.jsonl`, the table of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from flowfactory.runs import files
from flowfactory.runs.files import writing


class MetricsFile:
    """`metrics.jsonl`: one line per epoch. A `Tracker`.

    Args:
        epochs_done: lines of later epochs are dropped; a resumed run makes them again.
        write: whether this process writes at all.
    """

    def __init__(self, path: Path, epochs_done: int, write: bool) -> None:
        self._path, self._write = path, write
        if write:
            lines = files.lines(path) if path.exists() and epochs_done else []
            kept = [line + "\n" for line in lines if _epoch(line) <= epochs_done]
            with writing(path):
                files.write(path, "".join(kept).encode())

    def lines(self) -> list[dict[str, float]]:
        """The lines so far."""
        return read_lines(self._path)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the line of epoch `step`, and wait until it is on the disk: a checkpoint may follow.

        JSON has no number for what is not finite: it is null.
        """
        if self._write:
            line = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
            with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": step, **line}, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def finish(self) -> None:
        """Nothing is left to be done: every line is written when it is made."""


def read_lines(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; NaN where one says null."""
    lines = map(json.loads, files.lines(path))
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def _epoch(line: str) -> float:
    """The epoch of a line; infinity where it was cut short, as by a kill: it is made again."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, LookupError, TypeError):
        return math.inf
