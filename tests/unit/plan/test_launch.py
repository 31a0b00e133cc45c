"""Who has started this process, and where the others are."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import attrs
import pytest
from flowfactory.cli.launcher import GRACE, _tell_lost
from flowfactory.plan.launch import first_host, rank, rendezvous, world_size

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


@attrs.frozen
class Failure:
    """What torchrun knows of a process that has ended."""

    exitcode: int
    timestamp: int = 1000

    def signal_name(self) -> str:
        return signal.Signals(-self.exitcode).name


@pytest.mark.parametrize(
    ("failures", "named"),
    [
        ({0: Failure(1), 1: Failure(-9)}, [1]),  # 0 could not go on without 1
        ({1: Failure(-11), 0: Failure(-15)}, [1]),  # 0 was stopped by torchrun
        ({1: Failure(1), 0: Failure(-9, 1000 + GRACE)}, []),  # 1 has said why; 0 did not stop in time
        ({1: Failure(3)}, []),
    ],
)
def test_only_processes_that_could_not_say_why_they_ended_are_named(
    failures: Mapping[int, Failure], named: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    _tell_lost(failures)
    said = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1]) for line in said] == named
