"""Trackers receive what `metrics.jsonl` has, cannot break a run, and learn no secret."""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic, sleep

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from flowfactory.cli.main import main
from flowfactory.spec.rules.scores import TRACKERS

TRACKER = """
import json
from flowfactory import hookimpl

class Diary:
    def __init__(self, run):
        self.file = run.folder / "diary.jsonl"

    def log(self, metrics, step):
        with self.file.open("a") as file:
            file.write(json.dumps({"epoch": step, **metrics}) + "\\n")
        if step == 1:
            raise ConnectionError("the diary is out of ink")

    def finish(self):
        with self.file.open("a") as file:
            file.write("finished\\n")

@hookimpl
def flowfactory_tracker(name, run):
    return Diary(run) if name == "diary" else None
"""

SECRETS = {
    "WANDB_API_KEY": "5ec2e7" + "0123456789abcdef" * 2 + "77",
    "HF_TOKEN": "hf_SecretSecretSecretSecretSecretSec",
    "OPENAI_API_KEY": "sk-secret-of-a-judge",
    "AWS_SECRET_ACCESS_KEY": "secret/of/a/bucket",
}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def track(spec: Path, *names: str) -> tuple[int, Path]:
    folder = spec.parent / "runs" / "tracked"
    (spec.parent / "diary.py").write_text(TRACKER)
    listed = ", ".join(f'"{name}"' for name in names)
    plugins = f'plugins=["{spec.parent}/rewards.py", "{spec.parent}/diary.py"]'
    code = main(["run", str(spec), "--folder", str(folder), "--set", f"track.to=[{listed}]", "--set", plugins])
    return code, folder


def leaks(folder: Path) -> list[tuple[str, str]]:
    """Files with a secret in them, and its name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 7
    return [(n, path.name) for path in files for n, v in SECRETS.items() if v.encode() in path.read_bytes()]


@pytest.mark.usefixtures("secrets")
def test_tensorboard_has_the_metrics_and_no_file_a_secret(spec: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    code, folder = track(spec, "tensorboard")
    assert code == 0
    events = accumulator.EventAccumulator(str(folder / "flowfactory"))
    events.Reload()
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        for name in line.keys() - {"epoch"}:
            logged = {event.step: event.value for event in events.Scalars(name)}
            assert logged[line["epoch"]] == pytest.approx(line[name], rel=1e-6, abs=1e-12), name
    assert main(["report", str(folder)]) == 0
    assert leaks(folder) == []


@pytest.mark.usefixtures("secrets")
def test_wandb_works_offline_in_the_runs_folder(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(spec.parent)
    code, folder = track(spec, "wandb")
    assert code == 0
    (written,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    until = monotonic() + 60  # wandb writes in a process of its own
    while b"reward/redness/mean" not in written.read_bytes() and monotonic() < until:
        sleep(0.1)
    assert b"reward/redness/mean" in written.read_bytes()
    assert not (spec.parent / "wandb").exists()
    assert leaks(folder) == []


def test_a_plugins_tracker_is_told_and_cannot_break_the_run(spec: Path) -> None:
    code, folder = track(spec, "diary")
    assert code == 0
    *told, last = (folder / "diary.jsonl").read_text().splitlines()
    assert told == (folder / "metrics.jsonl").read_text().splitlines()
    assert last == "finished"
    assert "tracker diary failed at epoch 1; the run goes on" in (folder / "log.txt").read_text()


def test_the_names_known_without_torch_are_accelerates() -> None:
    assert set(TRACKERS) == {str(name) for name in LOGGER_TYPE_TO_CLASS}


def test_an_unknown_tracker_is_found_before_anything_is_loaded(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(spec), "--set", 'track.to=["tensorboard", "diary"]']) == 2
    assert "there is no tracker `diary`" in capsys.readouterr().err


def test_an_unknown_tracker_is_told(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = track(spec, "diary", "tensorbored")
    assert code == 1
    said = capsys.readouterr().err
    assert "[track] to: there is no tracker `tensorbored` (there is: `aim`, " in said
    assert "did you mean `tensorboard`?" in said
    assert "Traceback" not in said
    assert (folder / "diary.jsonl").read_text() == "finished\n"


def test_a_missing_package_is_told(
    spec: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfactory.metrics.track.get_available_trackers", list)
    assert track(spec, "aim")[0] == 1
    assert "the package of tracker `aim` is not installed; try: pip install aim" in capsys.readouterr().err


@pytest.mark.usefixtures("secrets")
def test_a_failed_run_keeps_secrets_too(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spec.parent / "rewards.py").write_text(
        (spec.parent / "rewards.py").read_text().replace("return [", "return 1/0, [")
    )
    code, folder = track(spec)
    assert code == 1
    assert "ZeroDivisionError" in (folder / "log.txt").read_text()
    assert leaks(folder) == []
    assert not any(secret in capsys.readouterr().err for secret in SECRETS.values())
