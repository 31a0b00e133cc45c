"""How many processes a launcher has started, and which of them this is, by the environment. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


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


def _first(names: Sequence[str], environment: Mapping[str, str]) -> int | None:
    return next((int(environment[name]) for name in names if name in environment), None)
