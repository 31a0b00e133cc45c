"""Stopping a run from outside without losing it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flowfactory.processes.distributed import Processes


class Stopped(Exception):
    """The run was asked to stop; `signal` says by what."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number

    @property
    def outcome(self) -> str:
        """What the run ended as: `terminated` after SIGTERM, `interrupted` after SIGINT."""
        return "terminated" if self.signal == signal.SIGTERM else "interrupted"


class StopRequest:
    """Notes SIGTERM and SIGINT; a second one interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def check(self, processes: Processes) -> None:
        """Raise `Stopped` on every process if any was asked to stop."""
        if processes.any(self.received is not None):
            raise Stopped(self.received or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number


@contextmanager
def listening() -> Iterator[StopRequest]:
    """While active, SIGTERM and SIGINT are noted instead of ending the process."""
    request = StopRequest()
    previous = {number: signal.signal(number, request._note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
