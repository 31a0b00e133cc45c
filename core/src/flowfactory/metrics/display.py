"""What shows a person how a run goes. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol


class Phase(Protocol):
    """A phase of the work that is going on."""

    def advance(self, n: int = 1) -> None:
        """`n` more items are done."""

    def note(self, **fields: float) -> None:
        """Numbers to show beside the bar, e.g. the reward so far."""


class Display(Protocol):
    """Shows a person what is going on; commands of plugins get one by `click.pass_obj`."""

    def say(self, text: str) -> None:
        """A line for people."""

    def phase(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Phase]:
        """Show what is happening while the block runs, how far it is and how fast.

        Args:
            total: how many items there are; unknown when absent. unit: what they are, e.g. "samples".
        """
        ...

    def epoch_line(self, epoch: int, epochs: int, metrics: Mapping[str, float], watched: Collection[str] = ()) -> None:
        """One line on a finished epoch. watched: rewards that count for nothing, e.g. `reward/jpeg`."""
