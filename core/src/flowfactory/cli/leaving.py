"""What code of others may not decide: what stdout says while it runs, and whether the process ever ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from threading import Thread, current_thread, enumerate, main_thread
from time import monotonic, sleep

PATIENCE = 5.0
"""Seconds that threads which plugins have left behind may still take."""


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """While active, what anybody prints, programs that are started included, goes to stderr: stdout is for data."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        kept = None
    with redirect_stdout(sys.stderr):
        if kept is not None:
            os.dup2(2, 1)
        try:
            yield
        finally:
            if kept is not None:
                os.dup2(kept, 1)
                os.close(kept)


def in_time(code: int) -> int:
    """The code, with which the process ends soon after its main thread, whatever threads plugins have left behind."""
    if _others():
        Thread(target=_end, args=(code,), daemon=True).start()
    return code


def _others() -> list[Thread]:
    return [one for one in enumerate() if not one.daemon and one not in (main_thread(), current_thread())]


def _end(code: int) -> None:
    while main_thread().is_alive():
        sleep(0.2)
    last = monotonic() + PATIENCE
    while (others := _others()) and monotonic() < last:
        sleep(0.2)
    if others:
        names = ", ".join(repr(one.name) for one in others)
        sys.stderr.write(f"threads that a plugin has left behind still run ({names}); the process ends without them\n")
        sys.stderr.flush()
        os._exit(code)
