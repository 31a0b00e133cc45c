"""Where calls of a reward wait for their turn, and for how long somebody wants the answer."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from time import monotonic

import attrs

GLANCE = 0.25
"""Seconds after which who waits looks whether there is still something to wait for."""


MOST = 2
"""Calls, one after another, that may time out in a round without any answer."""


class Unwanted(Exception):
    """Nobody waits for the answer any more."""


def never() -> bool:
    """An answer is waited for as long as it takes."""
    return False


@attrs.define(eq=False)
class Place:
    """Where a call is made: since when, and when it timed out."""

    since: float
    hung: float | None = None


class Places:
    """Where calls wait until they may be made: `count` at a time.

    A reward that hangs is noticed in twice `timeout` seconds, whoever asks it, one after another or all at once: where
    every place is held by a call that has timed out, all that come wait for `timeout` seconds together, not each. Where
    a call has timed out that was made after another one had, and none was answered in between, no further one is made
    before the next round.
    """

    def __init__(self, count: int, timeout: float) -> None:
        self._count, self._timeout = count, timeout
        self._held = set[Place]()
        self._in_vain: list[float] = []  # when calls timed out, each made after the one before had; none was answered
        self._changed = Condition()

    def begin(self) -> None:
        """Another round of scoring: a reward may have come to itself."""
        with self._changed:
            self._in_vain.clear()

    def take(self, over: Callable[[], bool]) -> Place | None:
        """Wait for a place; none when there was none in time.

        Raises:
            Unwanted: it is `over`.
        """
        start = monotonic()
        with self._changed:
            while len(self._held) == self._count and len(self._in_vain) < MOST:
                if over():
                    raise Unwanted
                hanging = [place.hung for place in self._held if place.hung is not None]
                begin = min(start, *hanging) if len(hanging) == self._count else start
                left = begin + self._timeout - monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, GLANCE))
            if len(self._in_vain) == MOST:
                return None
            place = Place(monotonic())
            self._held.add(place)
        return place

    def hang(self, place: Place) -> None:
        """Whoever has the place has timed out, and may hold it for ever."""
        with self._changed:
            if not self._in_vain or place.since >= self._in_vain[-1]:
                self._in_vain.append(monotonic())
            if place in self._held:
                place.hung = monotonic()

    def leave(self, place: Place) -> None:
        """Whoever had the place is done."""
        with self._changed:
            self._held.discard(place)
            if place.hung is None:
                self._in_vain.clear()
            self._changed.notify()
