"""Several processes give what one gives."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory.cli import main
from safetensors.torch import load_file

TOLERANCE = 1e-4
"""Of weights after two epochs at lr 1e-3, relative to how far they moved: sums are added up in another order."""


def test_two_processes_train_what_one_trains(run: Callable[..., Path], spec: Path, tmp_path: Path) -> None:
    # Plain gradient descent would not need it, but AdamW divides by roots of squares: eps keeps noise small.
    changes = ("optimizer.eps=1e-4", "sampling.micro_batch=3", "optimizer.micro_batch=3")
    one, two = run("one", *changes), tmp_path / "runs" / "two"
    options = [f"--set={change}" for change in changes]
    command = [sys.executable, "-m", "flowfactory", "run", str(spec), "--processes", "2", "--folder", str(two)]
    done = subprocess.run([*command, *options], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/2") == 1
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-2, abs=1e-5), name
    start = load_file(one / "checkpoints/epoch-0002/current.safetensors")
    end = load_file(two / "checkpoints/epoch-0002/current.safetensors")
    moved = max(float((start[k] - end[k]).abs().max()) for k in start)
    assert moved < TOLERANCE


def test_a_number_of_processes_that_does_not_divide_the_groups_is_refused(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(spec), "--processes", "3"]) == 2
    assert "the nearest numbers of processes that divide them are 1, 2" in capsys.readouterr().err
