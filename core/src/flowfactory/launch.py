"""How many processes there are, and starting them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def world_size(environment: Mapping[str, str] | None = None) -> int | None:
    """The number of processes a launcher (torchrun, accelerate, MPI) has started, or `None` outside of one."""
    return _first(_SIZES, environment)


def rank(environment: Mapping[str, str] | None = None) -> int:
    """The number of this process, from 0."""
    return _first(_RANKS, environment) or 0


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `flowfactory` with `arguments` in several processes of this machine; returns their exit code.

    By torchrun, which accelerate's own launcher uses on GPUs too; on CPUs that one would want MPI.
    """
    return subprocess.run(command(processes, arguments), check=False, env=_environment(processes)).returncode


def command(processes: int, arguments: Sequence[str]) -> list[str]:
    """The command `launch` runs."""
    return [sys.executable, "-m", "flowfactory.launch", str(processes), *arguments]


def _environment(processes: int) -> dict[str, str]:
    """The processes share the machine's cores, unless the environment says otherwise."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}


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
        return min(failure.exitcode for failure in error.failures.values() if failure.exitcode > 0)
    except SignalException as stopped:
        return 75 if stopped.sigval == signal.SIGTERM else 130
    return 0


def _first(names: Sequence[str], environment: Mapping[str, str] | None) -> int | None:
    found = os.environ if environment is None else environment
    return next((int(found[name]) for name in names if name in found), None)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
