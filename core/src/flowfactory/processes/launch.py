"""How many processes a launcher has started, and which of them this is, by the environment. Imports no torch.

One rule for everybody: a launcher is there where it says how many processes there are. Without that, a rank left over
from somewhere means nothing, and an empty variable is none. What torch and accelerate read is made from it (`settle`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, MutableMapping

from flowfactory.errors import BAD_SPEC, RunError

_FAMILIES = (
    ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
"""How launchers say it: the number of processes, which this is, which on its machine, how many are there."""

_SIZES = tuple(family[0] for family in _FAMILIES)
_RANKS = tuple(family[1] for family in _FAMILIES)
_MEETING = ("MASTER_ADDR", "MASTER_PORT")
_STRANGERS = ("ACCELERATE_", "FSDP_", "FORK_LAUNCHED")
"""How the names begin of what accelerate would let decide about a run, which only its spec does."""


class LaunchError(RunError):
    """The environment says of a launcher what cannot be; the message names the variable."""

    code = BAD_SPEC


def world_size(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of processes a launcher (torchrun, accelerate, MPI, srun) has started, or `None` outside of one.

    Raises:
        LaunchError: a variable is missing, or is no number.
    """
    found = _found(environment)
    return int(found["WORLD_SIZE"]) if found else None


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process, from 0.

    Raises:
        LaunchError: as `world_size`.
    """
    found = _found(environment)
    return int(found["RANK"]) if found else 0


def count(asked: int, environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a run has that was asked to have some; 1 says nothing, and a launcher of one starts nobody.

    Raises:
        LaunchError: a launcher has started another number of them.
    """
    started = world_size(environment) or 1
    if started > 1 < asked != started:
        name = next((name for name in _SIZES if name in _set(environment)), "SLURM_STEP_NUM_TASKS")
        what = f"--processes asks for {asked}, but a launcher has started {started} ({name}={started})"
        raise LaunchError(f"{what}; leave --processes away, or unset {name} where no launcher is meant")
    return max(asked, started)


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """Leave in the environment what `world_size` and `rank` say, for torch and accelerate, and nothing that differs.

    Raises:
        LaunchError: as `world_size`; or there is not enough for several processes to meet.
    """
    found, given = _found(environment) or {}, _set(environment)
    several = int(found.get("WORLD_SIZE", 1)) > 1
    made = dict(_complete(found, given)) if several else {}
    for name in [*environment]:
        known = name in _MEETING or any(name in family for family in _FAMILIES)
        elastic = name.startswith("TORCHELASTIC_") and (not several or "WORLD_SIZE" not in given)
        if known or elastic or name.startswith(_STRANGERS):
            del environment[name]
    environment.update(made)


def rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch's own launcher would have set, where `srun` has started several tasks; nothing elsewhere.

    A shell of `salloc`, a batch script and a single task are not that, whatever the allocation's size. The first of the
    step's machines is where they meet, at a port that follows from job and step, unless the environment names another.
    """
    given = _set(environment)
    if "WORLD_SIZE" in given or _number(given, "SLURM_STEP_NUM_TASKS", 1) == 1:
        return {}
    job, step = _number(given, "SLURM_JOB_ID"), _number(given, "SLURM_STEP_ID")
    meeting = {
        "MASTER_ADDR": first_host(_needed(given, "SLURM_STEP_NODELIST")),
        "MASTER_PORT": str(15_000 + (7 * job + step) % 15_000),
    }
    return {
        "RANK": str(_number(given, "SLURM_PROCID")),
        "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": str(_number(given, "SLURM_LOCALID")),
        **{name: given.get(name, value) for name, value in meeting.items()},
    }


def first_host(nodes: str) -> str:
    """The first of SLURM's list of machines: `gpu007` of `gpu[007-010,12],cpu3`."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])*", nodes)
    assert first
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0])


def _found(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Number and place as torch's own launcher says them, by whoever says them; `None` where nobody does."""
    given = _set(environment)
    if slurm := rendezvous(given):
        return slurm
    for size, own, local, _ in _FAMILIES:
        if size not in given:
            continue
        world = _number(given, size)
        place = _number(given, own, 0 if world == 1 else None)
        if not 0 <= place < max(world, 1):
            raise LaunchError(f"{size}={world} and {own}={place} cannot be; processes are counted from 0")
        made = {"WORLD_SIZE": str(world), "RANK": str(place)}
        return made | ({"LOCAL_RANK": str(_number(given, local))} if local in given else {})
    return None


def _complete(found: Mapping[str, str], given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What several processes need to find each other."""
    world = found["WORLD_SIZE"]
    yield from found.items()
    if "LOCAL_RANK" not in found:
        why = "set it to the number of this process on its machine, 0 where each machine has one"
        raise LaunchError(f"a launcher has started {world} processes, but LOCAL_RANK is not set; {why}")
    together = any(given.get(family[3]) == world for family in _FAMILIES)
    if not (address := found.get("MASTER_ADDR") or given.get("MASTER_ADDR") or ("127.0.0.1" if together else "")):
        why = "set it to the address of the machine that process 0 runs on"
        raise LaunchError(f"a launcher has started {world} processes, but MASTER_ADDR is not set; {why}")
    yield "MASTER_ADDR", address
    yield "MASTER_PORT", found.get("MASTER_PORT") or given.get("MASTER_PORT") or "29500"
    yield from ((name, given[name]) for name in ("LOCAL_WORLD_SIZE",) if name in given)


def _set(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with something in them; templates of compose and Kubernetes leave some empty."""
    return {name: value.strip() for name, value in environment.items() if value.strip()}


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in environment:
        return default
    text = _needed(environment, name)
    if not re.fullmatch(r"[0-9]{1,9}|429496729[0-5]", text):
        raise LaunchError(f"the environment variable {name} is {text!r}, not a number; unset it, or mend it")
    return int(text)


def _needed(environment: Mapping[str, str], name: str) -> str:
    if name not in environment:
        raise LaunchError(f"other variables say that a launcher has started several processes, but {name} is not set")
    return environment[name]
