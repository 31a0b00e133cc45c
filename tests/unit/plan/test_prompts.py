"""The rows of the data are looked at before anything is loaded, wherever they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry
from flowfactory.errors import Problem, SpecError
from flowfactory.plan import disk
from flowfactory.plan.plan import make_plan
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec
from hub import Hub
from huggingface_hub import constants
from specs import SOURCES, edited, lay

TRAIN = "data.prompts=hf://datasets/owner/name/train.jsonl"
ROWS = b'{"prompt": "a", "negativ_prompt": "b"}\n{"prompt": "c"}\n'


def looked_at(spec: Path, *sets: str) -> tuple[Spec | None, list[Problem]]:
    notes: list[Problem] = []
    try:
        return load_spec(spec, Registry(), sets, (), disk.RULES, notes.append), notes
    except SpecError as error:
        return None, list(error.problems)


def test_rows_of_the_hub_are_read_and_the_commit_is_written_down(online: Hub, spec: Path, tmp_path: Path) -> None:
    commit = online.commit({"train.jsonl": ROWS})
    found, notes = looked_at(spec, TRAIN, "sampling.prompts=2", "optimizer.updates=1")
    assert found is not None
    location = f"hf://datasets/owner/name@{commit}/train.jsonl"
    assert [note.what for note in notes] == [
        f"{location}: the column `negativ_prompt` is for rewards only; core reads `negative_prompt`"
    ]
    plan = make_plan(found, {})
    plan.write(tmp_path / "run")
    online.commit({"train.jsonl": b'{"prompt": "new"}\n'})
    again = load_spec(tmp_path / "run" / "spec.toml", Registry())
    assert (again.data.prompts, make_plan(again, {}).digest) == (location, plan.digest)
    fresh, _ = looked_at(spec, TRAIN)
    assert fresh is not None
    assert make_plan(fresh, {}).digest != plan.digest


def test_a_run_is_looked_at_where_the_hub_is_not(online: Hub, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = online.commit({"train.jsonl": ROWS, "other": b""})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    location = f"hf://datasets/owner/name@{commit}/train.jsonl"
    assert load_spec(spec, Registry(), [f"data.prompts={location}"], moved=True).data.prompts == location
    assert not online.asked
    _, (problem,) = looked_at(spec, TRAIN)
    assert (problem.kind, problem.place and problem.place.file) == ("no-such-location", None)
    assert "HF_HUB_OFFLINE forbids to ask the hub" in problem.what
    _, (problem,) = looked_at(spec, f"data.prompts={location}")
    assert problem.kind == "data"
    assert "HF_HUB_OFFLINE forbids to ask the hub" in problem.what


def test_only_data_comes_from_there(online: Hub, spec: Path) -> None:
    _, problems = looked_at(spec, "model.path=hf://datasets/owner/name/train.jsonl")
    assert [problem.kind for problem in problems] == ["no-such-location"]
    assert "only data files come from hf://" in problems[0].what


def test_each_source_is_looked_at_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"promt": "a"}\n')
    spec = lay(tmp_path, edited((SOURCES[0], SOURCES[1].replace("train.txt", "bad.jsonl"))))
    _, (problem,) = looked_at(spec)
    assert (problem.kind, problem.place and problem.place.line) == ("data", 21)
    assert "bad.jsonl:1: expected a `prompt`" in problem.what
    _, notes = looked_at(lay(tmp_path, edited(SOURCES)))
    assert [(note.kind, note.place and note.place.line) for note in notes] == [("few-prompts", 16)]
    assert notes[0].what.startswith("an epoch samples 2 prompts of source `signs` and there are 1")


@pytest.mark.parametrize("unsound", ["prompts", "eval_prompts"])
def test_a_file_that_is_unsound_in_itself_hides_no_other(spec: Path, unsound: str) -> None:
    other = {"prompts": "eval_prompts", "eval_prompts": "prompts"}[unsound]
    _, found = looked_at(spec, f"data.{unsound}=3", f"data.{other}=toy.py")
    assert {(problem.kind, problem.place and problem.place.text) for problem in found} == {
        ("wrong-type", f"--set data.{unsound}=3"),
        ("data", f"--set data.{other}=toy.py"),
    }
