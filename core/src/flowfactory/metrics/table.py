"""`metrics.jsonl`, the table of a run."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from flowfactory.errors import RunError, shown
from flowfactory.runs import files
from flowfactory.runs.files import writing

log = logging.getLogger("flowfactory")


class MetricsFile:
    """`metrics.jsonl`: one line per epoch. A `Tracker`.

    Args:
        epochs_done: lines of later epochs are dropped; a resumed run makes them again.
        write: whether this process writes at all.
    """

    def __init__(self, path: Path, epochs_done: int, write: bool) -> None:
        self._path, self._write = path, write
        if write:
            known = _known(path) if epochs_done else []
            kept = [text + "\n" for epoch, text in known if epoch <= epochs_done]
            if missing := sorted({*range(epochs_done)} - {epoch for epoch, _ in known}):
                log.warning("%s has no line of epoch %d, nor of %d others", shown(path), missing[0], len(missing) - 1)
            with writing(path):
                files.write_whole(path, "".join(kept).encode())

    def lines(self) -> list[dict[str, float]]:
        """The lines so far."""
        return read_lines(self._path)

    def take_back(self, epoch: int) -> dict[str, float] | None:
        """The last line, if it is of this epoch and lacks its evaluation; it is removed then."""
        texts = [text for _, text in _known(self._path)]
        line: dict[str, float] = json.loads(texts[-1]) if texts else {}
        if line.pop("epoch", None) != epoch or any(name.startswith("eval/") for name in line):
            return None
        with writing(self._path):
            files.write_whole(self._path, "".join(text + "\n" for text in texts[:-1]).encode())
        return {name: math.nan if value is None else value for name, value in line.items()}

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
    """The lines of a `metrics.jsonl`, without what a killed run left of its last; none where there is no file.

    Raises:
        RunError: it cannot be read, or a line is none of an epoch; naming it.
    """
    lines = [json.loads(text) for _, text in _known(path)]
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def _known(path: Path) -> list[tuple[int, str]]:
    """Epoch and text of each line. Only the last may have been cut short, as by a kill: it is made again."""
    if not path.exists():
        return []
    try:
        texts = files.lines(path)
    except OSError as error:
        raise RunError(f"{shown(path)} cannot be read: {error.strerror}") from error
    found = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            found.append((int(line["epoch"]), text))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number < len(texts):
                what = f"{shown(path)}:{number}: expected the metrics of an epoch, not {text[:40]!r}"
                raise RunError(f"{what}; put the line back, or remove it") from error
    return found
