"""How many processes there are, and starting them."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flowfactory.cli.ui import Ui

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")

GRACE = 300
"""Seconds torchrun leaves the processes to end after SIGTERM, when one has failed or when the run is stopped: then they
finish their step and save. What is left is killed."""


def world_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of processes a launcher (torchrun, accelerate, MPI, srun) has started, or `None` outside of one."""
    return _first(_SIZES, {**rendezvous(environment), **environment})


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process, from 0."""
    return _first(_RANKS, {**rendezvous(environment), **environment}) or 0


def rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch's own launcher would have set, where `srun` has started several tasks; nothing elsewhere.

    A shell of `salloc`, a batch script and a single task are not that, whatever the allocation's size. The first of the
    step's machines is where they meet, at a port that follows from job and step, unless the environment names another.
    """
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) == 1 or "RANK" in environment:
        return {}
    job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "MASTER_ADDR": first_host(environment["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(15_000 + (7 * job + step) % 15_000),
    }
    return {name: environment.get(name, value) for name, value in found.items()}


def first_host(nodes: str) -> str:
    """The first of SLURM's list of machines: `gpu007` of `gpu[007-010,12],cpu3`."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])*", nodes)
    assert first
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0])


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
    return [sys.executable, "-m", "flowfactory.plan.launch", str(processes), *arguments]


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


def _first(names: Sequence[str], environment: Mapping[str, str]) -> int | None:
    return next((int(environment[name]) for name in names if name in environment), None)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
