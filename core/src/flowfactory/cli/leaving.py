"""When a process ends: neither code of others nor the taking apart of what was imported may hold it up."""

from __future__ import annotations

import atexit
import faulthandler
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Thread, current_thread, enumerate, main_thread
from time import monotonic, sleep
from typing import NoReturn

PATIENCE = 5.0
"""Seconds that threads which plugins have left behind may still take."""


def process(work: Callable[[], int]) -> NoReturn:
    """Be the process that does this work, and end with its code once all that others want done at the end is done.

    Python would then take apart every module: with torch and diffusers seconds of computing, of each process of a run.
    What dies of a fault in machine code says where.
    """
    with suppress(OSError, ValueError, AttributeError):  # stderr is closed
        faulthandler.enable(all_threads=False)
    codes = list[int]()
    atexit.register(_end_at_once, codes)  # before anybody else's, so that it is called after them
    codes.append(work())
    sys.exit(codes[0])


def _end_at_once(codes: list[int]) -> None:
    """Nothing where no code is known: then Python says why."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, none, or its reader has left
            stream.flush()
    for code in codes:
        os._exit(code)


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
