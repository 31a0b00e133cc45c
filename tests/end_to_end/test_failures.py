"""What goes wrong in a run is said in words, with the exit code that was promised, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from flowfactory.cli import main

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
    assert code == 1
    assert "is not a diffusers pipeline" in said
    assert "Traceback" not in said


def test_a_size_the_model_cannot_make_is_refused_with_the_nearest(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = run(spec, "sampling.size=37")
    said = capsys.readouterr().err
    assert code == 1
    assert "cannot make 37x37; the nearest it can is" in said
    assert "Traceback" not in said
