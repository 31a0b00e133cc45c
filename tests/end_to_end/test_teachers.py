"""On-policy distillation in whole runs: a teacher that is another run, several of them, and a stop between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from end_to_end.conftest import metrics, written
from end_to_end.test_passes import watched
from flowfactory.cli.main import main
from flowfactory.runs import archive
from safetensors.torch import load_file

QUICK = ("run.save_samples=0", "sampling.prompts=4", "sampling.group=1", "eval.every=0", "optimizer.ema=0")
STUDENT = ("-full", "lora.rank=2", "trainer.name=opd", "scheduler={name='ode'}", "-reward", *QUICK)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A run whose weights have come far."""
    folder = tmp_path_factory.mktemp("teacher")
    one = ("run.epochs=1", "sampling.prompts=2", "run.save_samples=0", "eval.every=0", "optimizer.lr=0.3")
    options = ["--unset=full", "--set=lora.rank=3", *(f"--set={change}" for change in one)]
    assert main(["run", str(written(folder, checkpoint)), "--folder", str(folder / "run"), *options]) == 0
    return folder / "run"


def test_a_student_comes_nearer_to_its_teacher_and_a_stop_changes_nothing(
    run: Callable[..., Path], teacher: Path
) -> None:
    changes = (*STUDENT, f"trainer.teachers=[{{from='{teacher}'}}]", "optimizer.lr=0.01")
    whole = run("whole", *changes, "run.epochs=4")
    gaps = [line["train/gap"] for line in metrics(whole)[1:]]
    assert gaps[0] > 1e-4
    assert gaps[-1] < 0.9 * gaps[0]
    part = run("part", *changes, "run.epochs=2")
    assert main(["resume", str(part), "--epochs", "4"]) == 0
    assert metrics(part) == metrics(whole)
    ends = [load_file(archive.checkpoints(f / "checkpoints")[-1] / "current.safetensors") for f in (part, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_each_row_learns_from_the_teacher_it_names(
    run: Callable[..., Path], spec: Path, checkpoint: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself teaches half of the rows, which adds nothing at first; passes are counted, and no more.

    Exactly nothing where a teacher is asked about as many samples in one call as the student: others round otherwise.
    """
    rows = [{"prompt": f"a {name}", "teacher": name} for name in ("far", "same")] * 2
    (spec.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teachers = f"trainer.teachers=[{{name='far', from='{teacher}'}}, {{name='same', from='{checkpoint}'}}]"
    passed = watched(monkeypatch)
    student = (*STUDENT, teachers, f"data.prompts={spec.parent / 'rows.jsonl'}", "optimizer.updates=1", "run.epochs=1")
    line = metrics(run("student", *student))[-1]
    assert line["loss/same"] < 1e-12
    assert line["loss/far"] > 1e-6
    sampled, taught, learned = 4 * 4, 4 * 3, 4 * 3
    assert passed == {False: sampled + taught, True: learned}
    assert (line["network/forward"], line["network/trained"]) == (sampled + taught, learned)
    pairs = ("sampling.prompts=2", "sampling.group=2", "sampling.micro_batch=2", "optimizer.micro_batch=2")
    assert metrics(run("pairs", *student, *pairs))[-1]["loss/same"] == 0


def test_a_row_without_a_teacher_is_told_before_anything_runs(
    spec: Path, teacher: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a", "teacher": "far"}, {"prompt": "b", "teacher": ["far", "fra"]}, {"prompt": "c"}]
    (spec.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teachers = f"trainer.teachers=[{{name='far', from='{teacher}'}}, {{name='same', from='{checkpoint}'}}]"
    options = [f"--unset={c[1:]}" if c.startswith("-") else f"--set={c}" for c in (*STUDENT, teachers)]
    assert main(["check", str(spec), *options, f"--set=data.prompts={spec.parent / 'rows.jsonl'}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "trainer `opd` reads the column `teacher`: one of `far`, `same`, or a list; 2 rows have no such thing" in said
    )
    assert "the first is 'b', which has a list" in said or "the first is 'b', which has ['far', 'fra']" in said


@pytest.mark.parametrize("scheduler", ["flow-sde", "cps", "unipc"])
def test_any_sampling_will_do_and_all_weights_may_learn(
    run: Callable[..., Path], teacher: Path, scheduler: str
) -> None:
    """Of stochastic sampling the steps of the window are learned at, two here; of another solver's three of four."""
    window = "" if scheduler == "unipc" else ", window={rule='random', size=2}"
    changes = ("trainer.name=opd", f"trainer.teachers=[{{from='{teacher}'}}]", "-reward", *QUICK, "run.epochs=1")
    line = metrics(run("student", *changes, f"scheduler={{name='{scheduler}'{window}}}"))[-1]
    steps = 3 if scheduler == "unipc" else 2
    assert (line["network/forward"], line["network/trained"]) == (4 * 4 + 4 * steps, 4 * steps)
    assert line["loss/teacher"] > 0
    assert 0 < line["train/gradient_norm"] < float("inf")
