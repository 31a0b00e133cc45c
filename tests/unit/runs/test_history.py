"""Reading what runs leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flowfactory.errors import RunError
from flowfactory.runs import history
from flowfactory.runs.history import titles
from runs import lay_run


def read(folder: Path) -> history.History:
    return history.read_runs([folder])[0]


def test_a_run_is_read(tmp_path: Path) -> None:
    run = read(lay_run(tmp_path / "run", epochs=4))
    assert run.title == "run"
    assert run.packages == {"torch": "2.13.0"}
    assert list(run.metrics) == [0, 1, 2, 3, 4]
    assert run.series("eval/bright/mean") == [(0, 0.5), (2, 0.54), (4, 0.58)]
    assert list(run.kept("eval")) == [0, 2, 4]
    assert list(run.kept("epoch")) == [1, 2, 3, 4]
    shots = run.shots("eval", 2, most=2)
    assert [shot.prompt for shot in shots] == ["a red circle", "two blue squares"]
    assert shots[0].scores == {"bright": 0.48, "dark": None}
    assert shots[0].frames == 1


def test_frames_follow_the_plan(tmp_path: Path) -> None:
    assert read(lay_run(tmp_path / "run", frames=5)).shots("epoch", 1, 1)[0].frames == 5


def test_a_spec_without_an_eval_table_evaluates_at_the_size_it_samples(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", frames=5)
    plan = json.loads((folder / "plan.json").read_text())
    plan["spec"].pop("eval", None)
    (folder / "plan.json").write_text(json.dumps(plan))
    assert read(folder).shots("eval", 0, 1)[0].frames == 5


def test_titles_tell_runs_apart() -> None:
    assert titles([Path("/a/runs/x"), Path("/a/runs/y")]) == ["x", "y"]
    assert titles([Path("/a/runs/x"), Path("/b/runs/x")]) == ["a/runs/x", "b/runs/x"]


def test_a_last_line_in_the_making_is_left_out(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", epochs=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "rew')
    assert list(read(folder).metrics) == [0, 1, 2]


def test_a_broken_line_is_told(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", epochs=2)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "{", lines[2]]))
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: not JSON"):
        read(folder)


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not the folder of a run: it has no plan\.json"):
        read(tmp_path)


def test_a_sample_table_cannot_lead_out_of_the_run(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", epochs=2)
    table = folder / "samples" / "eval-0000" / "samples.jsonl"
    line = json.loads(table.read_text().splitlines()[0])
    table.write_text(json.dumps({**line, "file": "../../../secret.png"}) + "\n")
    (tmp_path / "secret.png").write_bytes(b"secret")
    assert read(folder).shots("eval", 0, 9) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", "[1]\n{}\n"),
        ("metrics.jsonl", '{"epoch": 1, "a": "b"}\n'),
        ("metrics.jsonl", '{"a": 1}\n'),
        ("metrics.jsonl", "[" * 100_000 + "\n{}\n"),
        ("plan.json", '{"spec": {'),
        ("plan.json", "[]"),
        ("plan.json", "{}"),
        ("plan.json", '{"digest": "a", "world": 1, "versions": {}, "numbers": [], "spec": {}}'),
        ("plan.json", '{"digest": "a", "world": 1, "versions": {}, "numbers": [{"name": 3}], "spec": {}}'),
        ("env.json", '{"packages": 3}'),
        ("env.json", "[]"),
        ("samples/eval-0000/samples.jsonl", '{"file": "0000.png"}\n'),
        ("samples/eval-0000/samples.jsonl", '{"file": "0000.png", "prompt": 1, "scores": {}}\n'),
        ("samples/eval-0000/samples.jsonl", '{"file": "0000.png", "prompt": "x", "scores": {"r": "high"}}\n'),
        ("samples/eval-0000/samples.jsonl", '{"file": "0000.png", "prompt": "x", "scores": {}, "words": {"r": 1}}\n'),
    ],
)
def test_damage_is_told_with_the_file(tmp_path: Path, name: str, content: str) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    (folder / name).write_text(content)
    with pytest.raises(RunError, match=name.rpartition("/")[2]):
        read(folder).shots("eval", 0, 9)


@pytest.mark.parametrize("name", ["plan.json", "env.json", "metrics.jsonl"])
def test_a_file_that_leads_out_of_the_run_is_not_read(tmp_path: Path, name: str) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=f"{name} is no file of this run: it leads to .*elsewhere, which is not read"):
        read(folder)


def test_neither_tables_nor_pictures_that_lead_out_of_the_run_are_read(tmp_path: Path) -> None:
    folder, other = lay_run(tmp_path / "run", epochs=1), lay_run(tmp_path / "other", epochs=1)
    picture = folder / "samples/eval-0000/0000.png"
    picture.unlink()
    picture.symlink_to(other / "samples/eval-0000/0000.png")
    assert [shot.file.name for shot in read(folder).shots("eval", 0, 9)] == ["0001.png", "0002.png"]
    (folder / "samples").rename(tmp_path / "samples")
    (folder / "samples").symlink_to(tmp_path / "samples")
    assert read(folder).kept("eval") == {}


def test_a_run_that_is_a_link_itself_is_read(tmp_path: Path) -> None:
    lay_run(tmp_path / "run", epochs=1)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert len(read(tmp_path / "link").shots("eval", 0, 9)) == 3


@pytest.mark.parametrize("address", [("run", "epochs"), ("optimizer", "betas"), ("sampling",)])
def test_a_plan_with_nothing_in_the_place_of_a_value_is_told(tmp_path: Path, address: tuple[str, ...]) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    plan = json.loads((folder / "plan.json").read_text())
    table = plan["spec"]
    for name in address[:-1]:
        table = table[name]
    table[address[-1]] = [None] if address[-1] == "betas" else None
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(RunError, match=rf"it has no `spec.{'.'.join(address)}"):
        read(folder)


def test_a_picture_whose_name_is_too_long_is_none(tmp_path: Path) -> None:
    folder = lay_run(tmp_path / "run", epochs=1)
    line = {"file": "x" * 300 + ".png", "prompt": "p", "scores": {}}
    (folder / "samples/epoch-0001/samples.jsonl").write_text(json.dumps(line) + "\n")
    assert read(folder).shots("epoch", 1, 2) == []
