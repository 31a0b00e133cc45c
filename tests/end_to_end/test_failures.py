"""What goes wrong in a run is said in words, with the exit code that was promised, and nothing is lost."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from end_to_end.conftest import REWARDS, metrics
from flowfactory.cli.main import main
from flowfactory.runs import archive
from flowfactory.training import loop
from flowfactory_plugin_flux.flux import Flux
from forks import flowfactory
from safetensors.torch import load_file

OBSERVER = """
from pathlib import Path
from flowfactory import hookimpl

def note(run, what):
    with (run.folder / "seen.txt").open("a") as file:
        file.write(what + "\\n")

@hookimpl
def flowfactory_run_started(run, plan):
    note(run, f"started {plan.spec.run.name}")

@hookimpl
def flowfactory_samples_scored(run, epoch, samples, scores):
    note(run, f"scored {epoch}: {len(samples)} {sorted(scores)} {len(scores['redness'])}")

@hookimpl
def flowfactory_epoch_finished(run, epoch, metrics):
    note(run, f"finished {epoch}")
    if epoch == 1:
        raise RuntimeError("observer trouble")

@hookimpl
def flowfactory_checkpoint_saved(run, epoch, path):
    note(run, f"saved {epoch} {path.name}")

@hookimpl
def flowfactory_run_finished(run, outcome):
    note(run, f"outcome {outcome}")
"""


def run(spec: Path, *changes: str) -> tuple[int, Path]:
    folder = spec.parent / "runs" / "x"
    return main(["run", str(spec), "--folder", str(folder), *(f"--set={c}" for c in changes)]), folder


def observed(spec: Path) -> str:
    """The change that adds the observer."""
    (spec.parent / "observer.py").write_text(OBSERVER)
    return f'plugins=["{spec.parent}/rewards.py", "{spec.parent}/observer.py"]'


def test_observers_see_a_run_in_order_and_cannot_break_it(spec: Path) -> None:
    code, folder = run(spec, observed(spec))
    assert code == 0
    assert (folder / "seen.txt").read_text().splitlines() == [
        "started tiny",
        "finished 0",
        "scored 1: 12 ['redness'] 12",
        "finished 1",
        "saved 1 epoch-0001",  # the best so far
        "scored 2: 12 ['redness'] 12",
        "finished 2",
        "saved 2 epoch-0002",
        "outcome done",
    ]
    log = (folder / "log.txt").read_text()
    assert "observer.py" in log
    assert "observer trouble" in log


def test_a_failing_reward_ends_the_run_by_name(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewards = spec.parent / "rewards.py"
    rewards.write_text(rewards.read_text().replace("return [float", "return [0 / 0 + float"))
    code, folder = run(spec, observed(spec))
    said = capsys.readouterr().err
    assert code == 1
    assert "reward 'redness' failed: ZeroDivisionError" in said
    assert "Traceback" not in said
    assert (folder / "seen.txt").read_text().splitlines() == ["started tiny", "outcome failed"]


def test_what_this_machine_lacks_is_said_before_the_model_is_loaded(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "load_model", lambda *arguments: pytest.fail("the model was loaded"))
    for change, words in (
        ("reward[0].device=cuda:77", "reward 'redness' is to compute on `cuda:77`, which is not here"),
        (
            "memory.attention=_nativ_math",
            "[memory] attention: diffusers knows no `_nativ_math`; did you mean `_native_",
        ),
    ):
        code, folder = run(spec, change)
        said = capsys.readouterr().err
        assert code == 1
        assert words in said
        assert "Traceback" not in said
        assert not folder.exists()


def test_a_bad_row_of_data_ends_the_run_at_its_line(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spec.parent / "train.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    code, _ = run(spec, f"data.prompts={spec.parent}/train.jsonl")
    said = capsys.readouterr().err
    assert code == 2
    assert "train.jsonl:2: expected a `prompt` with text in it" in said


def test_a_checkpoint_that_is_no_pipeline_is_said_to_be_none(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spec.parent / "empty").mkdir()
    code, _ = run(spec, f"model.path={spec.parent}/empty")
    said = capsys.readouterr().err
    assert code == 2
    assert "is no diffusers pipeline: it has no model_index.json" in said
    assert "Traceback" not in said


def test_a_size_the_model_cannot_make_is_refused_with_the_nearest(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = run(spec, "sampling.size=37")
    said = capsys.readouterr().err
    assert code == 2
    assert "sizes that are multiples of 16, not 37x37; the nearest are 32x32 or 48x48" in said
    assert "Traceback" not in said


# --- checkpoints that cannot be written, or read --------------------------------------------------------------------

QUICK = ("--set=run.epochs=3", "--set=run.save_samples=0", "--set=sampling.micro_batch=6", "--set=checkpoint.best=none")
EVERY = "--set=checkpoint.every=1"


class Disk:
    """A small disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, *options: str) -> None:
        """Make it, or change it."""
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount a disk: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


FILL = """
import os
from pathlib import Path

def fill():
    disk = Path({disk!r})
    if (disk / {after!r}).exists() and not (disk / "ballast").exists():
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "ballast").write_bytes(bytes(free - {left}))

def redness(samples):
    fill()"""


def filled(spec: Path, disk: Disk, after: str, left: int) -> None:
    """Let the disk be full but for `left` bytes as soon as there is a certain file."""
    rewards = spec.parent / "rewards.py"
    code = FILL.format(disk=str(disk.folder), after=after, left=left)
    rewards.write_text(rewards.read_text().replace("\ndef redness(samples):", code))


def stopped(spec: Path, folder: Path) -> Path:
    """A run with one checkpoint, that after its first epoch."""
    stop = (signal.SIGTERM, "sample", 3)
    code, said = flowfactory(spec.parent, "run", spec, "--folder", folder, *QUICK, stop=stop)
    assert code == 75, said
    assert [path.name for path in archive.checkpoints(folder / "checkpoints")] == ["epoch-0001"]
    return folder


def assert_lost_nothing(folder: Path, said: str) -> None:
    """The last checkpoint is named and intact, nothing half-written lies beside it, and no traceback was shown."""
    last = folder / "checkpoints" / "epoch-0001"
    assert f"the last checkpoint is {last}; go on from there with: flowfactory resume {folder}\n" in said
    assert "Traceback" not in said
    assert [path.name for path in last.parent.iterdir()] == [last.name]
    assert archive.damage(last) == ""


CLOSES = """
import os, sys

def redness(samples, honest=redness):
    os.close(1), os.close(2), sys.stderr.close()
    {then}
    return honest(samples)

"""


def test_a_reward_that_closes_descriptors_takes_nobodys_voice(spec: Path) -> None:
    for then, expected, words in (
        ("", 0, "done; the run is in"),
        ("raise ValueError('mine')", 1, "reward 'redness' failed: ValueError: mine"),
    ):
        (spec.parent / "rewards.py").write_text(REWARDS.replace("@hookimpl", f"{CLOSES.format(then=then)}@hookimpl", 1))
        code, said = flowfactory(spec.parent, "run", spec, "--runs", spec.parent / "runs", *QUICK)
        assert (code, words in said) == (expected, True), said
        assert "reward 'redness' changed descriptor 2, which everybody shares; it is as it was again" in said


def test_a_model_that_ends_the_program_is_a_failure_in_words(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def velocity(self: Flux, *arguments: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(Flux, "velocity", velocity)
    code, _ = run(spec)
    said = capsys.readouterr().err
    assert code == 1
    assert "SystemExit: 0\nthe run failed; this is in" in said
    assert "done" not in said


def test_a_full_disk_ends_the_run_and_spares_the_last_checkpoint(spec: Path, disk: Disk) -> None:
    whole = spec.parent / "whole"
    assert flowfactory(spec.parent, "run", spec, "--folder", whole, *QUICK, EVERY)[0] == 0
    (one, _) = archive.checkpoints(whole / "checkpoints")
    size = sum(file.stat().st_size for file in one.iterdir())
    disk.mount(f"size={size * 5}")
    filled(spec, disk, "run/checkpoints/epoch-0001", size // 2)
    folder = disk.folder / "run"
    code, said = flowfactory(spec.parent, "run", spec, "--folder", folder, *QUICK, EVERY)
    assert code == 1
    assert f"{folder}/checkpoints/epoch-0002 cannot be written: No space left on device\n" in said
    assert_lost_nothing(folder, said)
    (disk.folder / "ballast").write_bytes(b"")
    code, said = flowfactory(spec.parent, "resume", folder)
    assert code == 0, said
    assert metrics(folder) == metrics(whole)


def test_a_disk_full_of_samples_ends_the_run_in_words(spec: Path, disk: Disk) -> None:
    disk.mount("size=50m")
    filled(spec, disk, "run", 8_192)
    folder = disk.folder / "run"
    code, said = flowfactory(spec.parent, "run", spec, "--folder", folder, "--set=run.save_samples=12")
    assert code == 1
    assert f"{folder}/samples/" in said
    assert "cannot be written: No space left on device" in said
    assert "Traceback" not in said


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_anything_is_loaded(spec: Path, disk: Disk) -> None:
    disk.mount("size=60k")
    folder = disk.folder / "run"
    code, said = flowfactory(spec.parent, "run", spec, "--folder", folder)
    assert code == 2
    last = said.splitlines()[-1]
    assert re.match(rf"checkpoints of .* are to lie in {folder}, 1 at a time, and its disk has .* KiB left; make", last)
    assert not folder.exists()


def test_a_disk_that_can_only_be_read_ends_the_run_in_words(spec: Path, disk: Disk) -> None:
    disk.mount("size=50m")
    folder = stopped(spec, disk.folder / "run")
    disk.mount("remount", "ro")
    code, said = flowfactory(spec.parent, "resume", folder)
    assert code == 1
    assert said == f"{folder}/.lock cannot be written: Read-only file system\n"
    code, said = flowfactory(spec.parent, "run", spec, "--folder", disk.folder / "other")
    assert code == 1
    assert said.splitlines()[-1] == f"{disk.folder}/other cannot be written: Read-only file system"


def test_a_limit_on_files_ends_the_run_and_spares_the_last_checkpoint(spec: Path) -> None:
    folder = stopped(spec, spec.parent / "run")
    largest = max(file.stat().st_size for file in (folder / "checkpoints/epoch-0001").iterdir())
    code, said = flowfactory(spec.parent, "resume", folder, most=largest - 1)
    assert code == 1
    assert f"{folder}/checkpoints/epoch-0003 cannot be written: File too large\n" in said
    assert_lost_nothing(folder, said)
    code, said = flowfactory(spec.parent, "resume", folder)
    assert code == 0, said


def test_a_file_in_the_place_of_the_folder_is_named(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spec.parent / "runs").write_text("")
    code, folder = run(spec)
    assert code == 1
    assert capsys.readouterr().err.endswith(f"\n{folder} cannot be written: Not a directory\n")


def test_after_any_failure_the_last_checkpoint_is_named(spec: Path) -> None:
    folder = stopped(spec, spec.parent / "run")
    rewards = spec.parent / "rewards.py"
    rewards.write_text(rewards.read_text().replace("return [float", "return [0 / 0 + float"))
    code, said = flowfactory(spec.parent, "resume", folder)
    assert code == 1
    assert "reward 'redness' failed: ZeroDivisionError" in said
    assert f"the last checkpoint is {folder}/checkpoints/epoch-0001; go on from there with: flowfactory resume" in said


def test_a_damaged_checkpoint_is_never_trained_on_and_the_way_round_it_works(spec: Path) -> None:
    folder = spec.parent / "run"
    whole = spec.parent / "whole"
    more = (*QUICK, EVERY, "--set=checkpoint.keep=3")
    assert flowfactory(spec.parent, "run", spec, "--folder", whole, *more)[0] == 0
    shutil.copytree(whole, folder)
    one, two, three = archive.checkpoints(folder / "checkpoints")
    weights, state = three / "ema.safetensors", two / "state.json"
    weights.write_bytes(weights.read_bytes()[:-4])
    state.write_text(state.read_text()[:-20])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, said = flowfactory(spec.parent, "resume", folder)
    assert code == 1
    size = len((whole / "checkpoints" / three.name / weights.name).read_bytes())
    assert f"{weights} has {size - 4} bytes; {size} were written: this checkpoint is damaged. " in said
    command = f"rm -r {two} {three} && flowfactory resume {folder}"
    assert f"{one} is intact; go on from there with: {command}" in said
    assert "Traceback" not in said
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert after == {path: content for path, content in before.items() if path.name != "log.txt"}
    for damaged in (two, three):
        shutil.rmtree(damaged)
    code, said = flowfactory(spec.parent, "resume", folder)
    assert code == 0, said
    assert metrics(folder) == metrics(whole)
    for file in (whole / "checkpoints").rglob("*.*"):
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_a_run_with_nothing_intact_says_so(spec: Path) -> None:
    folder = stopped(spec, spec.parent / "run")
    (folder / "checkpoints/epoch-0001/optimizer.safetensors").unlink()
    code, said = flowfactory(spec.parent, "resume", folder)
    assert code == 1
    assert "optimizer.safetensors is missing; " in said
    assert f"No other one is intact; begin anew with: flowfactory run {folder}/spec.toml" in said
    assert "the last checkpoint is" not in said


def test_a_damaged_checkpoint_is_not_exported(spec: Path) -> None:
    folder = stopped(spec, spec.parent / "run")
    weights = folder / "checkpoints/epoch-0001/ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    code, said = flowfactory(spec.parent, "export", folder)
    assert code == 1
    assert "this checkpoint is damaged; no other one is intact" in said


def test_the_first_loss_that_is_not_finite_ends_the_run(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = run(spec, "optimizer.lr=1e30", "optimizer.weight_decay=0", "eval.every=0")
    said = capsys.readouterr().err
    assert code == 1
    assert "epoch 1, update 2 of 2: not finite: `loss/policy`, `train/gradient_norm`" in said, said
    assert "Traceback" not in said
    assert "flowfactory resume" not in said  # it would end in the same way
    assert [c.name for c in archive.checkpoints(folder / "checkpoints")] == ["epoch-0000"]  # as it began, undone


def test_weights_that_give_no_pictures_are_blamed_and_finite_ones_kept(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = (
        "optimizer.lr=1e30",
        "optimizer.weight_decay=0",
        "optimizer.updates=1",
        "eval.every=0",
        "checkpoint.every=1",
        "run.epochs=3",
    )
    code, folder = run(spec, *changes)
    said = capsys.readouterr().err
    assert code == 1
    assert "epoch 2/3: sampling: the weights give latents that are not finite" in said, said
    assert "redness" not in said
    (kept,) = archive.checkpoints(folder / "checkpoints")
    assert re.search(rf"the last checkpoint is \S+{kept.name}", said), said
    for file in kept.glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file
