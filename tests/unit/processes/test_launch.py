"""Who has started this process, and where the others are."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from flowfactory.processes.launch import LaunchError, count, first_host, rank, rendezvous, settle, world_size

TASK = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",  # the login node, where salloc was typed
}
BATCH = {"SLURM_JOB_ID": "1234", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def test_a_task_of_srun_knows_its_place_and_where_to_meet() -> None:
    assert (world_size(TASK), rank(TASK)) == (16, 11)
    found = rendezvous(TASK)
    assert {name: found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")} == {
        "RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "gpu007",
    }
    assert 15_000 <= int(found["MASTER_PORT"]) < 30_000


def test_tasks_of_one_step_meet_at_one_port_and_of_another_step_at_another() -> None:
    def port(**changed: str) -> str:
        return rendezvous({**TASK, **changed})["MASTER_PORT"]

    assert port(SLURM_PROCID="0", SLURM_LOCALID="0") == port()
    assert port(SLURM_STEP_ID="1") != port() != port(SLURM_JOB_ID="1235")
    assert port(MASTER_PORT="29500") == "29500"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,  # a batch script, or a shell of salloc
        {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},  # salloc's shell, where it is a step
    ],
)
def test_nothing_else_of_slurm_is_a_launcher(environment: Mapping[str, str]) -> None:
    assert (world_size(environment), rank(environment), rendezvous(environment)) == (None, 0, {})


def test_torchrun_inside_of_srun_is_the_launcher() -> None:
    environment = {**TASK, "RANK": "5", "WORLD_SIZE": "128"}
    assert (world_size(environment), rank(environment), rendezvous(environment)) == (128, 5, {})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu8", "gpu7"),
        ("gpu[007-010,12],cpu3", "gpu007"),
        ("gpu[3,5-6]-ib", "gpu3-ib"),
        ("rack[0-1]node[02-03]", "rack0node02"),
    ],
)
def test_the_first_machine_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


# --- one rule for what a launcher says -------------------------------------------------------------------------------

PAIR = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}
OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}


def settled(environment: Mapping[str, str]) -> dict[str, str]:
    changed = dict(environment)
    settle(changed)
    return changed


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": ""},
        {"WORLD_SIZE": " ", "RANK": "", "MASTER_ADDR": ""},
        {"LOCAL_RANK": "0"},
        {"NODE_RANK": "1", "LOCAL_RANK": "3"},
        {"RANK": "3", "MASTER_ADDR": "first"},
        {"SLURM_STEP_NUM_TASKS": ""},
    ],
)
def test_without_a_number_of_processes_there_is_no_launcher(environment: Mapping[str, str]) -> None:
    assert (world_size(environment), rank(environment)) == (None, 0)
    assert not settled(environment).keys() & {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"}


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "RANK is 'x'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "WORLD_SIZE=2 and RANK=2 cannot be"),
        ({"PMI_SIZE": "2"}, "PMI_RANK is not set"),
        ({**TASK, "SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        ({**TASK, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID is 'x'"),
    ],
)
def test_what_is_partial_is_named(environment: Mapping[str, str], named: str) -> None:
    for ask in (world_size, rank):
        with pytest.raises(LaunchError, match=named):
            ask(environment)


@pytest.mark.parametrize(
    ("without", "named"), [("LOCAL_RANK", "LOCAL_RANK is not set"), ("MASTER_ADDR", "MASTER_ADDR is not set")]
)
def test_what_several_processes_need_to_meet_is_named(without: str, named: str) -> None:
    with pytest.raises(LaunchError, match=named):
        settle({name: value for name, value in PAIR.items() if name != without})


def test_torch_and_accelerate_are_left_what_decides_nothing() -> None:
    strangers = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "FSDP_OFFLOAD_PARAMS": "true",
        "OMPI_COMM_WORLD_SIZE": "8",
        "PATH": "/bin",
    }
    assert settled({**PAIR, **strangers, "TORCHELASTIC_RUN_ID": "1"}) == {
        **PAIR,
        "PATH": "/bin",
        "TORCHELASTIC_RUN_ID": "1",
    }
    assert settled({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}) == {}


def test_mpi_is_translated_and_meets_here_where_all_are_on_one_machine() -> None:
    with pytest.raises(LaunchError, match="MASTER_ADDR"):
        settle(dict(OMPI))
    assert settled({**OMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}) == {
        "WORLD_SIZE": "4",
        "RANK": "2",
        "LOCAL_RANK": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    assert settled(TASK)["MASTER_ADDR"] == "gpu007"


def test_a_launcher_of_one_starts_nobody_and_another_number_than_asked_for_is_refused() -> None:
    assert count(2, {}) == 2
    assert count(2, {"WORLD_SIZE": "1", "RANK": "0"}) == 2
    assert (count(1, PAIR), count(2, PAIR)) == (2, 2)
    with pytest.raises(LaunchError, match=r"--processes asks for 4, but a launcher has started 2 \(WORLD_SIZE=2\)"):
        count(4, PAIR)
