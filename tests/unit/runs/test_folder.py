"""A run's folder: whose it is, and what is left when nothing came of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from flowfactory.discovery.registry import Registry
from flowfactory.errors import typed
from flowfactory.plan import estimate
from flowfactory.plan.plan import SPEC_FILE, Plan, make_plan
from flowfactory.runs import folder as folders
from flowfactory.runs.folder import FolderError
from flowfactory.spec.structure import load_spec
from runs import lay_run
from specs import SPEC

HOLDS = "import sys, time; from pathlib import Path; from flowfactory.runs.folder import owned\n"
HOLDS += "with owned(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def planned(run: Path) -> Plan:
    registry = Registry()
    return make_plan(load_spec(run / SPEC_FILE, registry), registry.versions())


def test_whoever_chooses_a_name_at_once_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: folders.new(tmp_path / "runs", "x"), range(24)))
    assert {path.name for path in made} == {"x", *(f"x-{n}" for n in range(2, 25))}


def test_a_folder_has_one_owner_and_the_lock_of_a_dead_one_is_void(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout
    assert owner.stdout.readline() == b"held\n"
    with pytest.raises(FolderError, match="is in use: a run goes on there; wait"), folders.owned(tmp_path):
        pass
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with folders.owned(tmp_path):
        pass


def test_only_an_empty_folder_is_given_to_a_run(tmp_path: Path) -> None:
    folders.vacant(tmp_path / "new")
    (tmp_path / "new" / ".DS_Store").touch()
    folders.vacant(tmp_path / "new")
    (tmp_path / "new" / "spec.toml").write_text("# mine")
    with pytest.raises(FolderError, match=r"is not empty: it has spec.toml; .*choose another --folder"):
        folders.vacant(tmp_path / "new")
    with pytest.raises(FolderError, match=r"of a run that has begun; go on with: flowfactory resume"):
        folders.vacant(lay_run(tmp_path / "run"))


def test_a_run_begins_where_its_checkpoints_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lay_run(tmp_path / "run", spec=f"{SPEC}\n[checkpoint]\nevery = 1\n")
    plan = planned(run)
    free = [2 * 10**6]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    monkeypatch.setattr(estimate, "checkpoint_bytes", lambda spec: 400_000)
    assert plan.spec.checkpoint.keep == 2
    folders.room(run, plan)
    free[0] = 900_000
    with pytest.raises(
        FolderError, match=r"checkpoints of 391 KiB are to lie in .*, 3 at a time, and its disk has 879 KiB"
    ):
        folders.room(run, plan)
    (run / "checkpoints" / "epoch-0001").mkdir(parents=True)  # it takes its place already
    folders.room(run, plan)
    monkeypatch.setattr(estimate, "checkpoint_bytes", lambda spec: None)
    free[0] = 0
    folders.room(run, plan)


def test_what_is_no_run_says_what_it_is(tmp_path: Path) -> None:
    run = lay_run(tmp_path / "runs" / "a")
    folders.see(run)
    with pytest.raises(FolderError, match="there is no such folder"):
        folders.see(tmp_path / "nothing")
    with pytest.raises(FolderError, match=r"it has no plan.json; there are runs in it: a$"):
        folders.see(run.parent)


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "checkpoints/epoch-0001/state.json"])
def test_a_pipe_in_a_run_is_not_waited_for(tmp_path: Path, name: str) -> None:
    file = lay_run(tmp_path / "run") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    with pytest.raises(FolderError, match=f"{name} is a pipe, which no run leaves; take it away"):
        folders.see(tmp_path / "run")


def test_a_start_that_came_to_nothing_leaves_nothing_and_anything_else_stays(tmp_path: Path) -> None:
    start, begun = tmp_path / "start", tmp_path / "begun"
    for folder in (start, begun):
        folder.mkdir()
        for name in ("spec.toml", "plan.json", "env.json", ".lock", "log.txt"):
            (folder / name).touch()
    (begun / "metrics.jsonl").touch()
    for folder in (start, begun, tmp_path / "absent"):
        folders.forget(folder)
    assert (start.exists(), len(list(begun.iterdir()))) == (False, 6)


def test_what_is_pasted_is_one_word_and_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(Path("runs copy/it's")) == """'runs copy/it'"'"'s'"""
    assert typed(Path("-x")) == "./-x"
    assert typed(Path("runs/tiny")) == "runs/tiny"
