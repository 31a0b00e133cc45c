"""Where calls of a reward wait for their turn, and for how long somebody wants the answer."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from time import monotonic

GLANCE = 0.25
"""Seconds after which who waits looks whether there is still something to wait for."""


class Unwanted(Exception):
    """Nobody waits for the answer any more."""


def never() -> bool:
    """An answer is waited for as long as it takes."""
    return False


class Places:
    """Where calls wait until they may be made: `count` at a time.

    Where every place is held by a call that has timed out, all that come wait for `timeout` seconds together, not
    each: a reward that hangs is noticed within minutes.
    """

    def __init__(self, count: int, timeout: float) -> None:
        self._count, self._timeout = count, timeout
        self._since = dict[object, float | None]()
        self._changed = Condition()

    def take(self, over: Callable[[], bool]) -> object | None:
        """Wait for a place; none when there was none in time.

        Raises:
            Unwanted: it is `over`.
        """
        start, place = monotonic(), object()
        with self._changed:
            while len(self._since) == self._count:
                if over():
                    raise Unwanted
                hanging = [since for since in self._since.values() if since is not None]
                begin = min(start, *hanging) if len(hanging) == self._count else start
                left = begin + self._timeout - monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, GLANCE))
            self._since[place] = None
        return place

    def hang(self, place: object) -> None:
        """Whoever has the place has timed out, and may hold it for ever."""
        with self._changed:
            if place in self._since:
                self._since[place] = monotonic()

    def leave(self, place: object) -> None:
        """Whoever had the place is done."""
        with self._changed:
            del self._since[place]
            self._changed.notify()
