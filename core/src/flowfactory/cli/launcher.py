"""Starting several processes on this machine. Imports torch only as the launcher itself."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flowfactory.cli.ui import Ui

GRACE = 300
"""Seconds torchrun leaves the processes to end after SIGTERM, when one has failed or when the run is stopped: then they
finish their step and save. What is left is killed."""


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `flowfactory` with `arguments` in several processes of this machine; returns their exit code.

    By torchrun, which accelerate's own launcher uses on GPUs too; on CPUs that one would want MPI.
    """
    # In a session of its own, so that Ctrl-C reaches it once: from here.
    launcher = subprocess.Popen(command(processes, arguments), env=_environment(processes), start_new_session=True)
    with forwarding(launcher):
        code = launcher.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While active, what would stop this process is passed on to another one, which knows how to stop."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    previous = {n: signal.signal(n, lambda number, frame: process.send_signal(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def command(processes: int, arguments: Sequence[str]) -> list[str]:
    """The command `launch` runs."""
    return [sys.executable, "-m", "flowfactory.cli.launcher", str(processes), *arguments]


def _environment(processes: int) -> dict[str, str]:
    """The processes share the machine's cores, and have time to stop, unless the environment says otherwise."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {"OMP_NUM_THREADS": str(threads), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE), **os.environ}


def main(processes: str, *arguments: str) -> int:
    """The launcher itself: start the processes and wait. Their errors have been told by themselves."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    options = ["--standalone", "--nproc-per-node", processes, "--module", "flowfactory", *arguments]
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        run(get_args_parser().parse_args(options))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _tell_lost(error.failures)
        return min((failure.exitcode for failure in error.failures.values() if failure.exitcode > 0), default=1)
    except SignalException as stopped:
        return 75 if stopped.sigval == signal.SIGTERM else 130
    return 0


def _tell_lost(failures: Mapping[int, Any]) -> None:
    """Say which processes were killed, and so could not say it; not those the launcher has ended after them."""
    noticed = min(failure.timestamp for failure in failures.values())
    for number, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and failure.timestamp < noticed + GRACE:
            why = f"process {number} was killed by {failure.signal_name()}, as happens when memory runs out"
            Ui().error(f"{why}; the run failed")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
