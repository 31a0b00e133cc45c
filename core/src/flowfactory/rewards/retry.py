"""Asking again: bounded attempts with growing pauses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONGEST = 60.0
"""Seconds past which a pause does not grow."""


def retried(
    call: Callable[[], T],
    retries: int,
    pause: float,
    transient: tuple[type[Exception], ...] = (Exception,),
    failed: Callable[[Exception], object] = lambda error: None,
    wait: Callable[[float], object] | None = None,
) -> T:
    """What `call` returns; it is called again up to `retries` times when it raises something `transient`.

    Args:
        pause: seconds before the second attempt; doubled before each further one, up to a minute.
        failed: called after every failed attempt. wait: waits some seconds; sleeps when absent.

    Raises:
        Exception: of the last attempt, or the first that is not `transient`.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except transient as error:
            failed(error)
            if attempt == retries:
                raise
        (wait or time.sleep)(min(pause * 2**attempt, max(pause, LONGEST)))
    raise AssertionError("the last attempt returns or raises")
