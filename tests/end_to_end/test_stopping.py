"""A run is stopped wherever it is, leaves what can be gone on with, and promises nothing else."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from end_to_end.conftest import REWARDS, SPEC, metrics
from flowfactory.runs import archive
from forks import flowfactory
from safetensors import safe_open

QUICK = ("--set=run.epochs=2", "--set=run.save_samples=0", "--set=sampling.prompts=2", "--set=sampling.group=2")

UPDATES = ("--set=optimizer.updates=2", "--set=optimizer.micro_batch=1", "--set=checkpoint.every=0")

WITHOUT_EVALUATIONS = ("--unset=eval", "--unset=data.eval_prompts")

STOPS_WHILE_ENCODING = """
import os, signal
from flowfactory_plugin_flux.flux import Flux

def encode(self, rows, own=Flux.encode):
    if not os.path.exists("{flag}"):
        open("{flag}", "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
    return own(self, rows)

Flux.encode = encode
"""

STOPS_WHILE_LOADING = """
import os, signal
from flowfactory_plugin_flux.flux import Flux

def load(self, *arguments, own=Flux.load):
    os.kill(os.getpid(), signal.SIGHUP)
    return own(self, *arguments)

Flux.load = load
"""

STOPS_WHILE_COMPUTING = """
import os, signal, torch
from flowfactory_plugin_flux.flux import Flux

calls = []

def velocity(self, *arguments, own=Flux.velocity):
    calls.append(torch.is_grad_enabled())
    with open("{calls}." + os.environ.get("RANK", "0"), "a") as file:
        file.write("x")
    if int(os.environ.get("RANK", "0")) == 0 and calls.count({trained}) == {number} and calls[-1] is {trained}:
        with open("{calls}.at", "w") as file:
            file.write(str(len(calls)))
        os.kill(os.getpid(), signal.{signal})
    return own(self, *arguments)

Flux.velocity = velocity
"""

HANGS = """
import time
def redness(samples):
    time.sleep(120)
"""

CANNOT_BE_LOADED = """
from flowfactory import Reward
class Redness(Reward):
    def load(self, device, dtype, shared):
        raise ValueError("no such weights")

    def score(self, samples):
        return redness(samples)
"""

DELETES = """
import shutil
def redness(samples):
    shutil.rmtree("{folder}", ignore_errors=True)
    return [0.0 for s in samples]
"""


def lay(folder: Path, checkpoint: Path, more: str = "", rewards: str = REWARDS) -> Path:
    """A spec and what it names, in a folder whose name has a space."""
    folder.mkdir(parents=True)
    (folder / "rewards.py").write_text(rewards.replace("@hookimpl", f"{more}\n@hookimpl", 1))
    (folder / "train.txt").write_text("a cat\na dog\na bird\na fish\na horse\na cow\n")
    (folder / "eval.txt").write_text("a tree\na house\na lake\n")
    (folder / "spec.toml").write_text(SPEC.format(checkpoint=checkpoint))
    return folder / "spec.toml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A run that nothing disturbs."""
    spec = lay(tmp_path_factory.mktemp("whole") / "a spec", checkpoint)
    code, said = flowfactory(spec.parent, "run", spec, "--folder", spec.parent / "whole", *QUICK)
    assert code == 0, said
    return spec.parent / "whole"


@pytest.fixture(scope="module")
def whole_of_two_updates(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """Another, whose epochs have two optimizer steps and no checkpoint but the last."""
    spec = lay(tmp_path_factory.mktemp("updates") / "a spec", checkpoint)
    code, said = flowfactory(spec.parent, "run", spec, "--folder", spec.parent / "whole", *QUICK, *UPDATES)
    assert code == 0, said
    return spec.parent / "whole"


def assert_goes_on(folder: Path, whole: Path) -> None:
    """It ends as if it had not been stopped."""
    code, said = flowfactory(folder.parent, "resume", folder)
    assert code == 0, said
    assert metrics(folder) == metrics(whole)
    for file in (whole / "checkpoints").rglob("*.safetensors"):
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(("evaluation", "saved"), [(1, "epoch-0000"), (2, "epoch-0001")])
def test_a_stop_while_evaluating_saves_and_the_evaluation_is_made_when_it_goes_on(
    tmp_path: Path, checkpoint: Path, whole: Path, evaluation: int, saved: str
) -> None:
    spec = lay(tmp_path / "a spec", checkpoint)
    folder, stop = spec.parent / "run", (signal.SIGHUP, "evaluate", evaluation)
    code, said = flowfactory(tmp_path, "run", spec, "--folder", folder, *QUICK, stop=stop)
    assert code == 75, said
    assert f"go on with: flowfactory resume '{folder}'\n" in said
    assert [path.name for path in archive.checkpoints(folder / "checkpoints")] == [saved]
    assert_goes_on(folder, whole)


def test_a_stop_while_encoding_saves_and_what_is_missing_is_encoded_when_it_goes_on(
    tmp_path: Path, checkpoint: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = lay(tmp_path / "a spec", checkpoint, STOPS_WHILE_ENCODING.format(flag=tmp_path / "flag"))
    folder, cache = spec.parent / "run", f"--set=memory.cache={tmp_path / 'cache'}"
    code, said = flowfactory(tmp_path, "run", spec, "--folder", folder, *QUICK, cache)
    assert code == 75, said
    assert [path.name for path in archive.checkpoints(folder / "checkpoints")] == ["epoch-0000"]
    assert_goes_on(folder, whole)
    assert (tmp_path / "cache" / "fingerprints.json").is_file(), "all that is kept lies where the spec says"


def test_a_stop_while_loading_promises_no_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    spec = lay(tmp_path / "a spec", checkpoint, STOPS_WHILE_LOADING)
    folder = spec.parent / "run"
    code, said = flowfactory(tmp_path, "run", spec, "--folder", folder, *QUICK)
    assert code == 128 + signal.SIGHUP, said
    assert "stopped by SIGHUP; go on with: flowfactory resume" in said
    assert "Traceback" not in said
    assert (folder / "plan.json").is_file()


@pytest.mark.parametrize(
    ("trained", "number", "kind", "code"),
    [
        (False, 2, "SIGHUP", 75),  # before training, in an evaluation
        (False, 9, "SIGINT", 130),  # sampling, of a batch of four steps
        (True, 2, "SIGTERM", 75),  # the first update of the first epoch
        (True, 15, "SIGTERM", 75),  # the last of an epoch: what the one before has changed is undone
    ],
)
def test_a_stop_is_heard_at_the_next_call_of_the_network(
    tmp_path: Path,
    checkpoint: Path,
    whole_of_two_updates: Path,
    trained: bool,
    number: int,
    kind: str,
    code: int,
) -> None:
    more = STOPS_WHILE_COMPUTING.format(calls=tmp_path / "calls", trained=trained, number=number, signal=kind)
    spec = lay(tmp_path / "a spec", checkpoint, more)
    folder = spec.parent / "run"
    ended, said = flowfactory(tmp_path, "run", spec, "--folder", folder, *QUICK, *UPDATES)
    assert ended == code, said
    assert "Traceback" not in said
    assert len((tmp_path / "calls.0").read_text()) == int((tmp_path / "calls.at").read_text())
    assert len(archive.checkpoints(folder / "checkpoints")) == 1
    (spec.parent / "rewards.py").write_text(REWARDS)
    assert_goes_on(folder, whole_of_two_updates)


@pytest.mark.parametrize(
    ("trained", "number", "how"),
    [
        (False, 2, "memory.shard=false"),  # sampling, each with weights of its own
        (True, 5, "memory.shard=true"),  # the second update, with weights divided
        (False, 2, "memory.ulysses=2"),  # sampling, as a team
    ],
)
def test_two_processes_hear_it_where_they_are(
    tmp_path: Path, checkpoint: Path, trained: bool, number: int, how: str
) -> None:
    more = STOPS_WHILE_COMPUTING.format(calls=tmp_path / "calls", trained=trained, number=number, signal="SIGTERM")
    spec = lay(tmp_path / "a spec", checkpoint, more)
    folder = spec.parent / "run"
    own = ("--processes=2", "--set=sampling.prompts=4", f"--set={how}", *WITHOUT_EVALUATIONS)
    code, said = flowfactory(tmp_path, "run", spec, "--folder", folder, *QUICK, *UPDATES, *own)
    assert code == 75, said
    assert "stopped by SIGTERM; go on with" in said
    stopped = int((tmp_path / "calls.at").read_text())
    made = [len((tmp_path / f"calls.{rank}").read_text()) for rank in (0, 1)]
    assert made[0] == stopped
    assert made[1] <= stopped + (2 if how == "memory.shard=false" else 0)
    assert len(archive.checkpoints(folder / "checkpoints")) == 1


def test_a_stop_while_a_reward_is_waited_for_waits_no_longer(tmp_path: Path, checkpoint: Path) -> None:
    spec = lay(tmp_path / "a spec", checkpoint, HANGS)
    folder = spec.parent / "run"
    begin = time.monotonic()
    stop = (signal.SIGTERM, "score", 2)
    code, said = flowfactory(tmp_path, "run", spec, "--folder", folder, *QUICK, *WITHOUT_EVALUATIONS, stop=stop)
    assert code == 75, said
    assert [path.name for path in archive.checkpoints(folder / "checkpoints")] == ["epoch-0000"]
    assert time.monotonic() - begin < 100


def test_a_folder_that_was_deleted_is_said(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "run"
    spec = lay(tmp_path / "a spec", checkpoint, DELETES.format(folder=folder))
    code, said = flowfactory(tmp_path, "run", spec, "--folder", folder, *QUICK)
    assert code == 1, said
    assert "was deleted or moved while the run went on" in said or "cannot be written" in said
    assert "done; the run is in" not in said


def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, checkpoint: Path) -> None:
    rewards = REWARDS.replace("NoKeys, redness,", "NoKeys, Redness,")
    spec = lay(tmp_path / "a spec", checkpoint, CANNOT_BE_LOADED, rewards)
    code, said = flowfactory(tmp_path, "run", spec, "--runs", tmp_path / "runs", *QUICK)
    assert (code, "no such weights" in said) == (1, True), said
    assert list((tmp_path / "runs").iterdir()) == []


def test_only_rows_that_are_used_are_encoded(tmp_path: Path, checkpoint: Path) -> None:
    spec = lay(tmp_path / "a spec", checkpoint)
    (spec.parent / "train.txt").write_text("".join(f"a cat {n}\n" for n in range(300)))
    cache = tmp_path / "cache"
    code, said = flowfactory(tmp_path, "run", spec, "--folder", tmp_path / "run", *QUICK, f"--set=memory.cache={cache}")
    assert code == 0, said
    assert encoded(cache) == 2 * 2 + 3


def encoded(cache: Path) -> int:
    """How many rows a cache has."""
    files = cache.glob("*/*.safetensors")
    return sum(len(json.loads(safe_open(file, "pt").metadata()["rows"])) for file in files)  # type: ignore[no-untyped-call]


def test_a_damaged_plan_is_written_anew_where_a_checkpoint_vouches_for_it(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "plan.json").write_text("")
    code, said = flowfactory(tmp_path, "resume", folder)
    assert code == 0, said
    assert "plan.json cannot be read: it is empty; the checkpoints are of this experiment" in said
    assert (folder / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    (folder / "plan.json").write_text("[]")
    shutil.rmtree(folder / "checkpoints")
    code, said = flowfactory(tmp_path, "resume", folder)
    assert (code, "Traceback" in said) == (1, False)
    assert "no intact checkpoint was made by the experiment" in said


def test_two_processes_outlive_a_terminal_under_nohup_and_not_the_command(tmp_path: Path, checkpoint: Path) -> None:
    spec = lay(tmp_path / "a spec", checkpoint)
    folder = spec.parent / "run"
    command = [sys.executable, "-m", "flowfactory", "run", str(spec), "--folder", str(folder), "--processes", "2"]
    process = subprocess.Popen(
        ["nohup", *command, "--set=run.epochs=500", "--set=run.save_samples=0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines(process, folder, 1)
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGHUP)
    lines(process, folder, len(metrics(folder)) + 1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() and state(pid) != "Z" for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def lines(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    """Wait until a run has so many lines of metrics."""
    deadline = time.monotonic() + 300
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children(pid: int) -> Sequence[int]:
    """The processes that a process has started."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str:
    """What a process does; "Z" once it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
