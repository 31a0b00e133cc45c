"""Starting several processes on this machine, and ending with them. Imports no torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from flowfactory.cli.ui import Ui
from flowfactory.errors import FAILED, TERMINATED
from flowfactory.processes.stop import heard

GRACE = 300.0
"""Seconds the processes have to end after one has failed: they finish their step. What is left is killed."""

GLANCE = 0.1
"""Seconds between looks at whether they are alive."""

STOPPED = (TERMINATED, 128 + signal.SIGTERM)
"""What a process ends with that was told to, with a checkpoint and without."""

HOST = "127.0.0.1"


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `flowfactory` with `arguments` in several processes of this machine; returns their exit code.

    Each is in a session of its own, so that Ctrl-C reaches it once: from here.
    """
    workers: list[subprocess.Popen[bytes]] = []
    with reserved() as port, forwarding(workers) as passed_on:
        try:
            for number in range(processes):
                if not passed_on:
                    place = environment(number, processes, port, os.environ)
                    workers.append(subprocess.Popen(command(arguments), env=place, start_new_session=True))
            return code_of(workers, passed_on)
        finally:
            for worker in workers:
                worker.kill()


@contextmanager
def beside(arguments: Sequence[str]) -> Iterator[None]:
    """While active, `flowfactory` runs with `arguments` in a process beside this one, which ends it without a word."""
    companion = subprocess.Popen(command(arguments), start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        companion.kill()
        companion.wait()


def command(arguments: Sequence[str]) -> list[str]:
    """What each process runs; `-P`, so that nothing is imported from the current folder."""
    return [sys.executable, "-P", "-m", "flowfactory.cli.worker", str(os.getpid()), *arguments]


def environment(number: int, processes: int, port: int, own: Mapping[str, str]) -> dict[str, str]:
    """Where a process is among the others; they share the machine's cores, unless `own` says otherwise."""
    cleaned = {name: value for name, value in own.items() if not name.startswith("TORCHELASTIC_")}
    return {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **cleaned,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
    }


@contextmanager
def reserved() -> Iterator[int]:
    """A port that nobody else is given meanwhile: it is bound here, and whoever reuses addresses may listen there."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((HOST, 0))
        yield held.getsockname()[1]


@contextmanager
def forwarding(workers: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """While active, what would stop this process is passed on to others, which know how to stop; yields what was."""
    passed_on: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        passed_on.append(number)
        for worker in workers:
            worker.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in heard()}
    try:
        yield passed_on
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def code_of(workers: Sequence[subprocess.Popen[bytes]], passed_on: Sequence[int]) -> int:
    """Wait for all, and no longer than `GRACE` for the others once one has failed; returns the first one's code."""
    ended: dict[int, int] = {}
    deadline, killed = float("inf"), False
    while len(ended) < len(workers):
        fresh = {n: code for n, w in enumerate(workers) if n not in ended and (code := w.poll()) is not None}
        if any(fresh.values()) and not any(ended.values()):
            tell_lost(fresh, passed_on)
            deadline, killed = time.monotonic() + GRACE, not passed_on and min(fresh.values()) < 0
            for number, worker in enumerate(workers):
                if number not in {**ended, **fresh} and not passed_on:
                    worker.terminate()
        ended |= fresh
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        time.sleep(0 if len(ended) == len(workers) else GLANCE)
    codes = [code for code in ended.values() if code]
    said = [code for code in codes if code > 0 and not (killed and code in STOPPED)]
    if passed_on and (not said or not workers):
        return 128 + passed_on[0]  # before they knew how to stop
    return said[0] if said else FAILED if codes else 0


def tell_lost(codes: Mapping[int, int], passed_on: Sequence[int]) -> None:
    """Say which processes were killed, and so could not say it."""
    for number, code in codes.items():
        if code < 0 and -code not in passed_on:
            why = f"process {number} was killed by {signal.Signals(-code).name}, as happens when memory runs out"
            Ui().error(f"{why}; the run failed")
