"""What code of others may not decide: whether the process ever ends."""

from __future__ import annotations

import os
import sys
from threading import Thread, current_thread, enumerate, main_thread
from time import monotonic, sleep

PATIENCE = 5.0
"""Seconds that threads which plugins have left behind may still take."""


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
