"""Everything a person sees. Progress and diagnostics go to stderr, data to stdout; nothing else in core prints.

On a terminal there are progress bars; elsewhere plain lines, one per epoch and one a minute in between. Names, prompts
and messages may hold anything: what a terminal would obey is escaped here, for every line, table and bar.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from flowfactory.errors import RunError, printable

EVERY = 60.0
"""Seconds without a line, where there is no bar, after which one says what goes on."""


class Phase:
    """A stretch of work, as it goes on."""

    def advance(self, n: int = 1) -> None:
        """`n` more items are done."""

    def note(self, **fields: float) -> None:
        """Numbers to show beside the bar, e.g. the reward so far."""


class Ui:
    """Talks to a person.

    Args:
        stderr, stdout: where to; the process's own when absent.
        quiet: say nothing but errors and data, as processes other than the main one do.
    """

    def __init__(self, stderr: TextIO | None = None, stdout: TextIO | None = None, quiet: bool = False) -> None:
        self._err = Console(file=stderr or sys.stderr, highlight=False, emoji=False, markup=False)
        self._out = stdout or sys.stdout
        self._quiet = quiet
        self._live = self._err.is_terminal and not self._err.is_dumb_terminal and not quiet
        self._said, self._pace = time.monotonic(), _Pace()

    # --- lines

    def say(self, text: str) -> None:
        """A line for people."""
        if not self._quiet:
            self._line(text)

    def error(self, text: str) -> None:
        """A line that is shown in any case."""
        self._line(text, style="bold red" if self._err.is_terminal else None)

    def trace(self, text: str) -> None:
        """A line of the hook trace."""
        self._line(text.rstrip("\n"), style="dim" if self._err.is_terminal else None)

    def _line(self, text: str, style: str | None = None) -> None:
        self._said = time.monotonic()
        self._err.print(Text(printable(text), style=style or ""), soft_wrap=True)

    # --- data

    def data(self, text: str) -> None:
        """Data, to stdout.

        Raises:
            RunError: it cannot be written.
        """
        try:
            print(printable(text), file=self._out, flush=True)
        except BrokenPipeError:  # whoever read it has left
            raise
        except OSError as error:
            raise RunError(f"stdout cannot be written: {error.strerror}") from error

    def json(self, value: Any) -> None:
        """Data as JSON, to stdout."""
        self.data(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))

    def rows(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table, to stdout: aligned columns, ruled on a terminal."""
        rows = [[printable(cell) for cell in row] for row in rows]
        console = Console(file=self._out, highlight=False, emoji=False, markup=False)
        if not console.is_terminal:
            return self.data("\n".join(_aligned([head, *rows])))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in head:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)

    # --- a run

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Phase]:
        """Show what is happening while the block runs, how far it is and how fast.

        Args:
            total: how many items there are; unknown when absent. unit: what they are, e.g. "samples".
        """
        if not self._live:
            with self._lines(_Count(name, total, unit)) if not self._quiet else nullcontext(Phase()) as phase:
                yield phase
            return
        columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
        if total is not None:
            columns += [BarColumn(), MofNCompleteColumn(table_column=_one_line()), _Speed(unit)]
        columns += [_Notes(_one_line()), TimeElapsedColumn(_one_line()), _Left(self._pace)]
        progress = Progress(*columns, console=self._err, transient=True)
        with progress:
            yield _Bar(progress, name, total)

    @contextmanager
    def _lines(self, count: _Count) -> Iterator[Phase]:
        """A line whenever there was none for a while."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(max(self._said + EVERY - time.monotonic(), 0.01)):
                if time.monotonic() >= self._said + EVERY:
                    self.say(" ".join(filter(None, [str(count), self._pace.left()])))

        threading.Thread(target=tell, daemon=True).start()
        try:
            yield count
        finally:
            over.set()

    def epoch_line(self, epoch: int, epochs: int, metrics: Mapping[str, float], watched: Collection[str] = ()) -> None:
        """One line on a finished epoch. watched: rewards that count for nothing, e.g. `reward/jpeg`."""
        self._pace.reach(epoch, epochs)
        self.say(epoch_text(epoch, epochs, metrics, watched))


class _Pace:
    """How long a run will still take, by the epochs that it has done so far."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._end: float | None = None

    def reach(self, epoch: int, epochs: int) -> None:
        """An epoch is done."""
        now = time.monotonic()
        first, since = self._first = self._first or (epoch, now)
        self._end = now + (now - since) / (epoch - first) * (epochs - epoch) if first < epoch < epochs else None

    def left(self) -> str:
        """`(run: about 2 h 5 min left)`; empty where nobody knows."""
        if self._end is None:
            return ""
        minutes = max(1, round((self._end - time.monotonic()) / 60))
        return f"(run: about {f'{minutes // 60} h ' if minutes >= 60 else ''}{minutes % 60} min left)"


class _Count(Phase):
    """A phase in words."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self._name, self._total, self._unit, self._done = name, total, unit, 0

    def advance(self, n: int = 1) -> None:
        self._done += n

    def __str__(self) -> str:
        """`encoding prompts: 12 of 48 prompts`."""
        return self._name + ("" if self._total is None else f": {self._done} of {self._total} {self._unit}".rstrip())


class _Bar(Phase):
    def __init__(self, progress: Progress, name: str, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(printable(name), total=total, notes={})

    def advance(self, n: int = 1) -> None:
        self._progress.advance(self._task, n)

    def note(self, **fields: float) -> None:
        self._progress.update(self._task, notes=fields)


def _one_line() -> Column:
    """A column that is cut where the terminal is narrow; wrapped ones take several lines."""
    return Column(no_wrap=True)


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(_one_line())
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_number(speed)} {self._unit}/s".replace(" /", "/"))


class _Left(ProgressColumn):
    def __init__(self, pace: _Pace) -> None:
        super().__init__(_one_line())
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(self._pace.left())


class _Notes(ProgressColumn):
    def render(self, task: Task) -> Text:
        notes = (f"{name} {_number(value)}" for name, value in task.fields["notes"].items())
        return Text(printable("  ".join(notes)))


def epoch_text(epoch: int, epochs: int, metrics: Mapping[str, float], watched: Collection[str] = ()) -> str:
    """`epoch 3/60  reward 0.512  eval 0.610  loss 0.0012  12.3 s (sample 8.0, train 4.3)`.

    The weighted sum of several rewards comes before them; those in `watched` count for nothing.
    """
    parts = [f"epoch {epoch}/{epochs}"]
    for group in ("reward", "eval"):
        named = [(name.split("/"), value) for name, value in metrics.items()]
        means = {path[1]: v for path, v in named if len(path) == 3 and path[0] == group and path[-1] == "mean"}
        total = metrics.get(f"{group}/score")
        if total is not None and [*means.values()] != [total]:
            parts.append(f"{group} score {_number(total)}")
        for label, value in means.items():
            only = " (watched only)" if f"{group}/{label}" in watched else ""
            parts.append(f"{group}{f' {label}' if len(means) > 1 else ''} {_number(value)}{only}")
    parts += [f"{name} {_number(value)}" for name, value in metrics.items() if name.startswith("loss/")]
    times = {name.removeprefix("time/"): v for name, v in metrics.items() if name.startswith("time/")}
    if times:
        longest = sorted(times.items(), key=lambda item: -item[1])[:3]
        parts.append(f"{sum(times.values()):.1f} s ({', '.join(f'{name} {v:.1f}' for name, v in longest)})")
    return "  ".join(parts)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.2e}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
