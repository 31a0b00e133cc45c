"""A second trained network: what it leaves, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from end_to_end.conftest import metrics
from end_to_end.test_passes import watched
from flowfactory.cli.main import main
from safetensors.torch import load_file

DMD = ("trainer={name='dmd', fake_steps=2}", "scheduler={name='ode'}", "sampling.steps=2", "sampling.group=1")
TDM = ("trainer={name='tdm', fake_steps=2}", *DMD[1:])
QUIET = ("-reward", "eval.every=0", "run.save_samples=0")
LORA = ("-full", "lora.rank=2")
BOTH = pytest.mark.parametrize("trainer", [DMD, TDM], ids=["dmd", "tdm"])

Run = Callable[..., Path]


def sets(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What the last checkpoint holds, by file."""
    last = sorted((folder / "checkpoints").glob("epoch-*"))[-1]
    return {file.stem: load_file(file) for file in sorted(last.glob("*.safetensors"))}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@BOTH
@pytest.mark.parametrize("tuning", [LORA, ()], ids=["lora", "full"])
def test_both_networks_are_trained_and_kept(run: Run, trainer: tuple[str, ...], tuning: tuple[str, ...]) -> None:
    folder = run("a", *trainer, *QUIET, *tuning)
    kept = sets(folder)
    assert kept.keys() == {"current", "ema", "fake", "optimizer", "optimizer.fake"} | (
        set() if tuning else {"reference"}
    )
    assert kept["optimizer"].keys() == kept["optimizer.fake"].keys()
    steps = {stem: {float(t) for n, t in kept[stem].items() if n.endswith("/step")} for stem in kept if "opt" in stem}
    assert steps == {"optimizer": {4.0}, "optimizer.fake": {8.0}}
    assert apart(kept["current"], kept["fake"]) > 0
    line = metrics(folder)[-1]
    assert {"loss/student", "loss/fake", "train/gap", "train/gradient_norm", "train/gradient_norm/fake"} <= line.keys()


@BOTH
def test_passes_of_an_epoch(run: Run, monkeypatch: pytest.MonkeyPatch, trainer: tuple[str, ...]) -> None:
    """4 samples, made in 2 steps. Each of two fake steps asks the student, and the fake network with a gradient; the
    student's step asks teacher and fake network, and itself with a gradient."""
    rows = watched(monkeypatch)
    folder = run("a", *trainer, *QUIET, "run.epochs=1")
    line = metrics(folder)[-1]
    planned = {number["name"]: number["value"] for number in json.loads((folder / "plan.json").read_text())["numbers"]}
    assert rows == {False: 4 * 2 + 2 * 4 + 2 * 4, True: 2 * 4 + 4}
    assert (line["network/forward"], line["network/trained"]) == (rows[False], rows[True])
    assert (planned["forward_passes"], planned["trained_passes"]) == (rows[False], rows[True])
    assert line["network/trained/fake"] == planned["fake_passes"] == 2 * 4


def test_the_first_turns_of_a_role_leave_the_trained_weights(run: Run) -> None:
    """With a learning rate of nothing but the fake network's."""
    folder = run(
        "a", *QUIET, *LORA, "run.epochs=1", "optimizer.lr=1e-30", *DMD[1:], "trainer={name='dmd', fake_lr=1e27}"
    )
    kept = sets(folder)
    assert apart(kept["current"], kept["ema"]) < 1e-20
    assert apart(kept["current"], kept["fake"]) > 1e-4


def test_memory_of_a_role_is_in_the_plan(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*(f"--set={change}" for change in DMD), "--unset=reward", "--json"]
    assert main(["plan", str(spec), *options]) == 0
    memory = {need["name"]: need for need in json.loads(capsys.readouterr().out)["memory"]["parts"]}
    assert memory["moments"]["bytes"] == 4 * memory["trained"]["bytes"]
    assert "fake" in memory["sets"]["reason"]
    assert "the trained weights, fake" in memory["moments"]["reason"]


def test_half_precision_with_scaled_losses_is_refused(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*(f"--set={change}" for change in DMD), "--unset=reward", "--set=run.precision=fp16"]
    assert main(["check", str(spec), *options]) == 2
    assert "trainer `dmd` trains `fake` too, and fp16 scales the losses of one optimizer" in capsys.readouterr().err


def test_a_role_can_be_exported(run: Run, tmp_path: Path) -> None:
    folder = run("a", *TDM, *QUIET, *LORA, "run.epochs=1")
    assert main(["export", str(folder), "--weights", "fake", "--to", str(tmp_path / "fake")]) == 0
    assert list((tmp_path / "fake").rglob("*.safetensors"))
