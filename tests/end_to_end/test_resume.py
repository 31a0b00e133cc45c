"""A run that is stopped, or killed, goes on as if it had not been; what would not be the same is said or refused."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import kills
import pytest
import torch
from end_to_end.conftest import metrics, written
from flowfactory.runs import archive
from flowfactory.runs.archive import Origin
from forks import flowfactory, received, start
from safetensors.torch import load_file

QUICK = {
    "run.epochs": 3,
    "run.save_samples": 2,
    "sampling.prompts": 2,
    "sampling.steps": 3,
    "sampling.micro_batch": 3,
    "checkpoint.every": 2,
    "checkpoint.keep": 1,
}
TOLERANCE = 1e-5
"""Between one process and two."""


def options(changes: Mapping[str, object]) -> list[str]:
    return [f"--set={key}={value}" for key, value in changes.items()]


def whole(spec: Path, name: str, changes: Mapping[str, object] = {}) -> Path:
    """A run that nothing disturbs."""
    folder = spec.parent / name
    code, said = flowfactory(spec.parent, "run", spec, "--folder", folder, *options({**QUICK, **changes}))
    assert code == 0, said
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A spec that no test changes."""
    return written(tmp_path_factory.mktemp("shared"), checkpoint)


@pytest.fixture(scope="module")
def undisturbed(shared: Path) -> Path:
    """Its whole run."""
    return whole(shared, "whole")


@pytest.fixture(scope="module")
def begun(shared: Path) -> Path:
    """A run of it that was stopped."""
    return stopped(shared, "begun")


@pytest.fixture
def a(begun: Path, tmp_path: Path) -> Path:
    """A copy of that."""
    return Path(shutil.copytree(begun, tmp_path / "a"))


def stopped(spec: Path, name: str, number: signal.Signals = signal.SIGTERM) -> Path:
    """A run that is asked to stop while it samples for the second epoch, in two micro-batches."""
    folder, stop = spec.parent / name, (number, "sample", 3)
    code, said = flowfactory(spec.parent, "run", spec, "--folder", folder, *options(QUICK), stop=stop)
    assert code == {signal.SIGTERM: 75, signal.SIGINT: 130}[number], said
    assert f"stopped by {number.name}; go on with: flowfactory resume {folder}" in said
    return folder


def resume(folder: Path, *more: object) -> tuple[int, str]:
    return flowfactory(folder.parent, "resume", folder, *more)


def content(folder: Path) -> dict[str, bytes]:
    """What a run leaves that does not depend on the clock: checkpoints and samples, to the bit."""
    files = [file for kind in ("checkpoints", "samples") for file in (folder / kind).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def assert_same(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    one, other = content(a), content(b)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_thirty_runs_are_killed_wherever_they_are_and_end_the_same(spec: Path) -> None:
    rewards = spec.parent / "rewards.py"
    rewards.write_text(
        rewards.read_text().replace("    return [", "    time.sleep(0.01)\n    return [") + "\nimport time\n"
    )
    runs = spec.parent / "runs"
    runs.mkdir()
    quick = runs / "quick.toml"
    tables: dict[str, list[str]] = {}
    for key, value in {**QUICK, "sampling.group": 2, "sampling.micro_batch": 2}.items():
        tables.setdefault(key.partition(".")[0], []).append(f"{key.partition('.')[2]} = {value}")
    text = [f"[{table}]\n" + "\n".join(lines) for table, lines in tables.items()]
    quick.write_text(f'extends = "{spec}"\n' + "\n".join(text))
    process, results = start(kills.experiment, quick, runs, 30)
    done = list(received(results))
    process.join()
    assert process.exitcode == 0
    assert len({kill.folder for kill in done}) == 30
    assert {kill.phase for kill in done} >= set(kills.PHASES)
    assert [kill for kill in done if kill.damage] == []
    for folder in sorted(runs.glob("kill-*")):
        assert_same(runs / "whole", folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_resume_ends_where_the_whole_run_ends(
    shared: Path, undisturbed: Path, number: signal.Signals
) -> None:
    folder = stopped(shared, number.name, number)
    assert len(metrics(folder)) == 2
    code, said = resume(folder)
    assert code == 0, said
    assert "epoch 2/3" in said
    assert "epoch 1/3" not in said
    assert_same(undisturbed, folder)


ADAPTIVE = """
import attrs
import torch
from flowfactory import Provides, hookimpl
from flowfactory_plugin_grpo import GRPOSpec
from flowfactory_plugin_grpo.grpo import GRPO


class Adaptive(GRPO):
    def after_epoch(self, metrics):
        grows = metrics["reward/redness/mean"] > -1 and metrics["train/kl"] >= 0
        self.spec = attrs.evolve(self.spec, kl_beta=self.spec.kl_beta * (3.7 if grows else 0.5))

    def state(self):
        return {"kl_beta": torch.tensor(self.spec.kl_beta, dtype=torch.float64)}

    def restore(self, state):
        self.spec = attrs.evolve(self.spec, kl_beta=float(state["kl_beta"]))


@hookimpl
def flowfactory_trainers():
    yield Provides("adaptive", GRPOSpec, Adaptive, "GRPO whose divergence weighs more after each epoch.")
"""


def test_a_trainer_remembers_over_a_stop(spec: Path) -> None:
    """Its weight of the divergence is another in each epoch, and decides what the next one learns."""
    (spec.parent / "adaptive.py").write_text(ADAPTIVE)
    text = spec.read_text().replace('"./rewards.py"', '"./rewards.py", "./adaptive.py"').replace("[full]", "[lora]")
    spec.write_text(text.replace('name = "grpo"', 'name = "adaptive"\nkl_beta = 0.1'))
    folder = stopped(spec, "stopped")
    first = load_file(folder / "checkpoints/epoch-0001/trainer.safetensors")
    assert float(first["kl_beta"]) == pytest.approx(0.37)
    code, said = resume(folder)
    assert code == 0, said
    undisturbed = whole(spec, "whole")
    assert_same(undisturbed, folder)
    last = load_file(folder / "checkpoints/epoch-0003/trainer.safetensors")
    assert float(last["kl_beta"]) == pytest.approx(0.1 * 3.7**3)
    constant = spec.parent / "rewards.py"
    constant.with_name("adaptive.py").write_text(ADAPTIVE.replace("3.7", "1.0"))
    assert content(whole(spec, "constant")) != content(undisturbed)


def test_two_processes_are_stopped_through_their_launcher_and_one_goes_on(spec: Path) -> None:
    """By SIGTERM to the command alone; and by Ctrl-C in a terminal, which its whole group gets."""
    changes = {"run.epochs": 5, "sampling.prompts": 4, "optimizer.micro_batch": 3, "optimizer.eps": 1e-4}
    one, folder = whole(spec, "one", changes), spec.parent / "two"
    code, said = two_processes(
        signal.SIGTERM, folder, 1, "run", spec, "--folder", folder, *options({**QUICK, **changes})
    )
    assert code == 75, said
    assert f"stopped by SIGTERM; go on with: flowfactory resume {folder}" in said
    before = archive.checkpoints(folder / "checkpoints")
    assert [archive.damage(path) for path in before] == [""]
    code, said = two_processes(signal.SIGINT, folder, len(metrics(folder)) + 1, "resume", folder)
    assert code == 130, said
    assert "stopped by SIGINT" in said
    assert "was written and is" not in said
    code, said = resume(folder)
    assert code == 0, said
    assert "the number of processes was 2 when epoch-0" in said
    for a, b in zip(metrics(one), metrics(folder), strict=True):
        assert a == pytest.approx(b, rel=0, abs=TOLERANCE)
    first, other = (load_file(f / "checkpoints/epoch-0005/current.safetensors") for f in (one, folder))
    assert max(float((first[k] - other[k]).abs().max()) for k in first) < TOLERANCE


def two_processes(number: signal.Signals, folder: Path, lines: int, *arguments: object) -> tuple[int, str]:
    """Start a command with two processes and stop it when the run has so many lines of metrics."""

    def stop(pid: int) -> None:
        file, deadline = folder / "metrics.jsonl", time.monotonic() + 100
        while not file.exists() or file.read_text().count("\n") < lines:
            assert time.monotonic() < deadline
            time.sleep(0.03)
        (os.killpg if number == signal.SIGINT else os.kill)(pid, number)

    return flowfactory(folder.parent, *arguments, "--processes", 2, meanwhile=stop)


def test_a_finished_run_has_nothing_left_to_do(undisturbed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "a"))
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    kept = metrics(folder)
    assert resume(folder)[0] == 0
    assert metrics(folder) == kept
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before


@pytest.mark.parametrize("edited", [False, True])
def test_a_finished_run_goes_on_for_more_epochs_as_if_it_had_been_asked_for_them(
    shared: Path, undisturbed: Path, edited: bool
) -> None:
    """By `--epochs`, or in its spec; and once more, when it has been lengthened and then stopped."""
    folder = whole(shared, f"edited-{edited}", {"run.epochs": 1})
    if edited:
        own = folder / "spec.toml"
        own.write_text(own.read_text().replace("epochs = 1", "epochs = 2"))
    code, said = resume(folder, *([] if edited else ["--epochs", 2]))
    assert code == 0, said
    assert f"{folder} ends with epoch 2 now, not 1; its learning rate is constant" in said
    code, said = resume(folder, "--epochs", 3)
    assert code == 0, said
    assert "epoch 2/3" not in said
    assert metrics(folder) == metrics(undisturbed)
    one, other = (load_file(f / "checkpoints/epoch-0003/ema.safetensors") for f in (undisturbed, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert resume(folder)[0] == 0
    code, said = resume(folder, "--epochs", 2)
    assert code == 2
    assert "has finished epoch 3 already; it cannot end with epoch 2" in said


def test_what_more_epochs_do_to_a_falling_learning_rate_is_said(spec: Path) -> None:
    folder = whole(spec, "a", {"run.epochs": 2, "optimizer.lr_schedule": "linear", "optimizer.warmup": 1})
    assert [line["lr"] for line in metrics(folder)[1:]] == pytest.approx([1e-3, 1e-3 / 3])
    code, said = resume(folder, "--epochs", 3)
    assert code == 0, said
    falls = "its learning rate (linear) falls to zero over 3 epochs now, not over 2"
    assert f"{falls}: it goes on with 0.0004, after 0.000333 in epoch 2" in said
    assert metrics(folder)[-1]["lr"] == pytest.approx(2e-4)


def test_a_changed_spec_is_not_resumed_and_the_change_is_named(spec: Path) -> None:
    folder = stopped(spec, "a")
    own = folder / "spec.toml"
    own.write_text(own.read_text().replace("lr = 0.001", "lr = 0.002").replace("keep = 1", "keep = 3"))
    code, said = resume(folder)
    assert code == 2
    assert f"{folder}/spec.toml (`optimizer.lr` was 0.001 and is 0.002) was changed since the run began; " in said
    own.write_text(own.read_text().replace("lr = 0.002", "lr = 0.001"))
    (spec.parent / "train.txt").write_text("a cow\n")
    code, said = resume(folder)
    assert code == 2
    assert f"a file that {folder}/spec.toml names, such as its prompts" in said


def test_what_does_not_decide_results_may_change(a: Path) -> None:
    own = a / "spec.toml"
    own.write_text(own.read_text().replace("keep = 1", "keep = 3"))
    code, said = resume(a)
    assert code == 0, said
    assert [path.name for path in archive.checkpoints(a / "checkpoints")] == [
        "epoch-0001",
        "epoch-0002",
        "epoch-0003",
    ]


def test_a_checkpoint_of_another_experiment_is_refused(a: Path, shared: Path) -> None:
    b = whole(shared, "b", {"optimizer.lr": 0.002})
    last = archive.checkpoints(b / "checkpoints")[-1]
    shutil.copytree(last, a / "checkpoints" / last.name)
    code, said = resume(a)
    assert code == 1
    assert f"{last.name} was made by another experiment than {a}/spec.toml describes" in said
    assert "epoch 2/3" not in said


def test_other_versions_and_numbers_of_processes_are_said_a_line_each(a: Path) -> None:
    (last,) = archive.checkpoints(a / "checkpoints")
    state = archive.read(last)
    versions = {**state.origin.versions, "torch": "1.0", "flowfactory-plugin-gone": "3"}
    (last / "state.json").unlink()
    archive.seal(last, state.epoch, state.step, Origin(state.origin.digest, 2, versions))
    code, said = resume(a)
    assert code == 0, said
    now = state.origin.versions["torch"]
    assert f"torch was 1.0 when epoch-0001 was written and is {now} now\n" in said
    assert "flowfactory-plugin-gone was 3 when epoch-0001 was written and is not in use now\n" in said
    assert (
        "the number of processes was 2 when epoch-0001 was written and is 1 now: sums are added up in another" in said
    )
    assert said.count("when epoch-0001 was written") == 3


def test_a_run_without_a_checkpoint_begins_again(a: Path, undisturbed: Path) -> None:
    shutil.rmtree(a / "checkpoints")
    code, said = resume(a)
    assert code == 0, said
    assert f"{a} has no checkpoint yet; it begins again" in said
    assert_same(undisturbed, a)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    code, said = resume(tmp_path / "nothing")
    assert code == 2
    assert "is not the folder of a run" in said


def test_a_new_run_does_not_take_the_folder_of_one_with_checkpoints(a: Path, shared: Path) -> None:
    code, said = flowfactory(a.parent, "run", shared, "--folder", a)
    assert code == 2
    assert f"{a} has checkpoints of a run; go on with: flowfactory resume {a}, or choose another" in said
