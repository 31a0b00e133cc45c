"""Stopping a run from outside without losing it: one request, which every loop asks for. Imports no torch."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from flowfactory import streams
from flowfactory.errors import Ending
from flowfactory.processes import launch

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

AGAIN = 0.5
"""Seconds within which further signals are the same request: a terminal and a launcher may both pass it on."""

CURRENT: list[StopRequest] = []


class Together(Protocol):
    """The processes of a run, as far as they agree about stopping."""

    @property
    def accompanied(self) -> bool: ...
    def any(self, flag: bool) -> bool: ...
    def told(self, flag: bool) -> bool: ...
    def told_together(self, flag: bool) -> bool: ...


class Stopped(Ending):
    """The run was asked to stop.

    signal: by what. saved: whether a checkpoint follows; nothing had begun where it does not.
    """

    everywhere = True

    def __init__(self, number: int, saved: bool = True) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal, self.saved = number, saved

    @property
    def outcome(self) -> str:
        """What the run ended as: `interrupted` after SIGINT, `terminated` after any other."""
        return "interrupted" if self.signal == signal.SIGINT else "terminated"


class Abandoned(Ending):
    """What a process is computing is not needed any more, since the run was asked to stop."""


class AtOnce(Ending, KeyboardInterrupt):
    """Whoever asked for it does not want to wait."""


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGHUP; a second one interrupts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._when, self._deferred, self._abandoning = 0.0, False, False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While active, the run itself asks whether to stop, and saves; elsewhere a signal ends it right there."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def asked(self, processes: Together) -> bool:
        """Whether any process was asked to stop, as far as it is known here; waits for nobody."""
        return processes.told(self.received is not None)

    def check(self, processes: Together) -> None:
        """Raise `Stopped` on every process if any was asked to stop; all have to ask."""
        if processes.any(self.asked(processes)):
            raise Stopped(self.received or signal.SIGTERM)

    @contextmanager
    def abandoning(self, processes: Together) -> Iterator[None]:
        """While active, what each process computes may be left where it looks; all have to ask at its end.

        Raises:
            Stopped: on every process, if any was asked to stop by then.
        """
        before, self._abandoning = self._abandoning, True
        try:
            yield
        except Abandoned:
            self.check(processes)
            raise
        finally:
            self._abandoning = before
        self.check(processes)

    def look(self, processes: Together, alone: bool = False) -> None:
        """Leave what is being computed, where it may be left, if the run was asked to stop; before each long call.

        Processes that call the networks together look at the same calls, and leave at the same one.

        Args:
            alone: whether others may not come here; where they all have to leave together, nobody leaves then.

        Raises:
            Abandoned: to whoever is `abandoning`.
        """
        if not self._abandoning or (alone and processes.accompanied):
            return
        if processes.told_together(self.received is not None):
            raise Abandoned

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is None:
            self.received, self._when = number, time.monotonic()
            if not self._deferred:
                raise Stopped(number, saved=False)
            _say(f"{name}: it stops, with a checkpoint, as soon as it can; once more, and it ends at once")
        elif time.monotonic() - self._when > AGAIN:
            _say(f"{name} again: it ends at once; what was made since the last checkpoint will be made again")
            raise AtOnce


@contextmanager
def listening() -> Iterator[StopRequest]:
    """While active, signals that ask a process to stop are noted; within another one, the request is the same.

    A hang-up that was to be ignored, as under nohup, still is. Shells let what they start in the background ignore
    SIGINT, lest Ctrl-C reaches it; who sends it there means it.
    """
    if CURRENT:
        yield CURRENT[-1]
        return
    request = StopRequest()
    previous = {n: signal.signal(n, request._note) for n in heard()}
    CURRENT.append(request)
    try:
        yield request
    finally:
        CURRENT.remove(request)
        for number, handler in previous.items():
            signal.signal(number, handler)


def heard() -> list[signal.Signals]:
    """The signals to listen to: not to a hang-up that is to be ignored."""
    return [n for n in NUMBERS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


def _say(text: str) -> None:
    """A line to stderr, by the main process; a signal may come while anything else is being written."""
    if launch.rank() == 0:
        streams.say(text)
