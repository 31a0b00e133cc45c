"""Several runs at a glance: how far each is, and what it reached. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from flowfactory.errors import RunError
from flowfactory.plan.plan import PLAN_FILE
from flowfactory.runs import history

HEAD = ("run", "state", "epoch", "score", "time")


@attrs.frozen
class Overview:
    """One run.

    state: "running", "finished", "stopped", or why it cannot be read. epoch: the last that is over, of `epochs`.
    first, last: the weighted sum of the mean rewards, of held-out prompts where there are any, of the first line that
    has it and of the last. seconds: spent in all epochs.
    """

    folder: Path
    state: str
    epoch: int = 0
    epochs: int = 0
    first: float | None = None
    last: float | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return attrs.asdict(self) | {"folder": str(self.folder)}

    def row(self) -> tuple[str, ...]:
        """The cells under `HEAD`."""
        score = "" if self.first is None or self.last is None else f"{self.first:.3f} -> {self.last:.3f}"
        minutes, seconds = divmod(round(self.seconds), 60)
        time = f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {seconds:02} s"
        return self.folder.name, self.state, f"{self.epoch} of {self.epochs}", score, time


def folders(place: Path) -> Sequence[Path]:
    """The folders of runs in `place`, the one that was changed last first."""
    return sorted((path.parent for path in place.glob(f"*/{PLAN_FILE}")), key=_changed, reverse=True)


def of(run: Path) -> Overview:
    """What the files in a run's folder say of it."""
    try:
        (past,) = history.read_runs([run])
        spec = past.plan["spec"]
        epochs = int(spec["run"]["epochs"])
    except (RunError, KeyError, TypeError, ValueError) as error:
        return Overview(run, f"cannot be read: {error}")
    scores = [value for _, value in past.series("eval/score") or past.series("reward/score")]
    epoch = max(past.metrics, default=0)
    state = "running" if past.going_on() else "finished" if epoch >= epochs else "stopped"
    seconds = math.fsum(v for line in past.metrics.values() for name, v in line.items() if name.startswith("time/"))
    first, last = (scores[0], scores[-1]) if scores else (None, None)
    return Overview(run, state, epoch, epochs, first, last, seconds)


def _changed(run: Path) -> float:
    with suppress(OSError):
        return max(path.stat().st_mtime for path in (run / PLAN_FILE, run / history.METRICS) if path.exists())
    return 0.0
