"""Several processes give what one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory.cli import main
from safetensors.torch import load_file

TOLERANCE = 1e-5
"""Of each metric, and of each weight after two epochs at lr 1e-3: sums are added up in another order."""


def two_processes(spec: Path, folder: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    """Run the spec in two real processes."""
    command = [sys.executable, "-m", "flowfactory", "run", str(spec), "--processes", "2", "--folder", str(folder)]
    options = [f"--set={change}" for change in changes]
    return subprocess.run([*command, *options], check=False, capture_output=True, text=True, timeout=300)


def test_two_processes_train_what_one_trains(run: Callable[..., Path], spec: Path, tmp_path: Path) -> None:
    # AdamW divides by roots of squares: eps keeps the noise of gradients near zero small.
    changes = ("optimizer.eps=1e-4", "sampling.micro_batch=3", "optimizer.micro_batch=3", "sampling.group=3")
    one, two = run("one", *changes), tmp_path / "runs" / "two"
    done = two_processes(spec, two, *changes)
    assert done.returncode == 0, done.stderr
    assert json.loads((two / "plan.json").read_text())["world"] == 2
    assert done.stderr.count("epoch 1/2") == 1
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=0, abs=TOLERANCE), name
    first = load_file(one / "checkpoints/epoch-0002/current.safetensors")
    other = load_file(two / "checkpoints/epoch-0002/current.safetensors")
    assert max(float((first[k] - other[k]).abs().max()) for k in first) < TOLERANCE


LOADS_ON_RANK_0_ONLY = """
import os
from flowfactory import Reward

class Redness(Reward):
    def load(self, device, dtype, shared):
        if os.environ["RANK"] == "1":
            raise ValueError("no such model")

    def score(self, samples):
        return redness(samples)
"""


def test_a_process_that_fails_ends_the_others_and_says_so_once(spec: Path, tmp_path: Path) -> None:
    rewards = spec.parent / "rewards.py"
    text = rewards.read_text().replace("@hookimpl", LOADS_ON_RANK_0_ONLY + "\n@hookimpl")
    rewards.write_text(text.replace("NoKeys, redness,", "NoKeys, Redness,"))
    done = two_processes(spec, tmp_path / "runs" / "two")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("ValueError: no such model") == 1
    assert "Traceback" not in done.stderr


def test_processes_that_read_different_specs_do_not_start(spec: Path, tmp_path: Path) -> None:
    """As when one machine has an older copy of the prompts."""
    (spec.parent / "rewards.py").write_text(
        (spec.parent / "rewards.py").read_text()
        + "\nimport os, pathlib\n"
        + "if os.environ.get('RANK') == '1':\n"
        + "    import flowfactory.plan\n"
        + "    flowfactory.plan.fingerprint = lambda path: 'older'\n"
    )
    done = two_processes(spec, tmp_path / "runs" / "two")
    assert done.returncode == 1, done.stderr
    assert "read another spec, or other files, than process 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_number_of_processes_that_does_not_divide_the_groups_is_refused(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(spec), "--processes", "3"]) == 2
    assert "the nearest numbers of processes that divide them are 1, 2" in capsys.readouterr().err
