"""How many processes there are, and starting them through accelerate's launcher."""

from __future__ import annotations

import os
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
    """Run `flowfactory` with `arguments` in several processes of this machine; returns its exit code."""
    return subprocess.run(command(processes, arguments), check=False).returncode


def command(processes: int, arguments: Sequence[str]) -> list[str]:
    """The command `launch` runs."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    # Said only so that the launcher does not say that they were not: precision is the spec's business.
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *plain, "-m", "flowfactory", *arguments]


def _first(names: Sequence[str], environment: Mapping[str, str] | None) -> int | None:
    found = os.environ if environment is None else environment
    return next((int(found[name]) for name in names if name in found), None)
