"""A run that is stopped, or killed, goes on as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from end_to_end.conftest import metrics
from flowfactory.cli import main
from safetensors.torch import load_file

Runner = Callable[..., Path]
EPOCHS = 4
CHANGES = (f"run.epochs={EPOCHS}", "checkpoint.every=1", "eval.every=2")


def start(spec: Path, folder: Path) -> subprocess.Popen[str]:
    """The same run, in a process of its own that can be killed."""
    options = [f"--set={change}" for change in CHANGES]
    command = [sys.executable, "-c", "import sys; from flowfactory.cli import main; sys.exit(main())"]
    return subprocess.Popen(
        [*command, "run", str(spec), "--folder", str(folder), *options], stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def assert_same(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    for name in ("current", "ema", "optimizer"):
        one, other = (load_file(f / f"checkpoints/epoch-{EPOCHS:04d}/{name}.safetensors") for f in (a, b))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGINT, 130, "SIGINT")])
def test_a_signal_saves_and_resume_ends_where_the_whole_run_ends(
    run: Runner, spec: Path, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    whole, stopped = run("whole", *CHANGES), tmp_path / "runs" / "stopped"
    process = start(spec, stopped)
    wait_for(process, lambda: lines(stopped) >= 2)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert f"stopped by {word}; go on with: flowfactory resume {stopped}" in said
    assert 2 <= lines(stopped) <= EPOCHS
    assert main(["resume", str(stopped)]) == 0
    assert_same(whole, stopped)


@pytest.mark.parametrize("moment", [0.02, 0.13, 0.31])
def test_a_killed_run_resumes_bit_for_bit(run: Runner, spec: Path, tmp_path: Path, moment: float) -> None:
    whole, killed = run("whole", *CHANGES), tmp_path / "runs" / "killed"
    process = start(spec, killed)
    wait_for(process, lambda: lines(killed) >= 2)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert main(["resume", str(killed)]) == 0
    assert_same(whole, killed)


def test_a_finished_run_has_nothing_left_to_do(run: Runner) -> None:
    folder = run("a")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    kept = metrics(folder)
    assert main(["resume", str(folder)]) == 0
    assert metrics(folder) == kept
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == before


def test_a_changed_spec_is_not_resumed(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("a")
    spec = folder / "spec.toml"
    spec.write_text(spec.read_text().replace("lr = 0.001", "lr = 0.002"))
    assert main(["resume", str(folder)]) == 2
    assert "was changed since the run began" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
