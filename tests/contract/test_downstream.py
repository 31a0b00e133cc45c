"""The command that runs other people's plugins: what is sound passes, what is not fails and says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.cli.baking import bake
from outside import ROOT

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "downstream" / "run.py"


def downstream(*recipes: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, recipes)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)


def test_plugins_are_fetched_installed_and_run(tmp_path: Path) -> None:
    project = bake("scheduler", "theirs", {}, tmp_path)
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "first")
    git(project, "tag", "v1")
    offline = 'install = ["--no-build-isolation", "--no-index", "."]'
    checks = f'{offline}\ncommands = ["flowfactory check examples/theirs.toml"]'
    sound = write(tmp_path, "cloned", f'repository = "{project}"\nrevision = "v1"\n{checks}\n')
    bad = f'path = "{project.name}"\n{offline}\ncommands = ["flowfactory check no.toml"]\ncontact = "@a"\n'
    done = downstream(sound, write(tmp_path, "copied", bad))
    assert done.returncode == 1
    assert "cloned: ok" in done.stdout
    assert "copied: FAILED (@a)" in done.stdout
    assert "cannot read no.toml" in done.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('commands = ["true"]', "expected either `repository` or `path`"),
        ('path = "."\ncommands = []', "commands"),
        ('path = "."\ncommands = ["true"]\nprepare = 1', "prepare"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    done = downstream(write(tmp_path, "bad", text))
    assert done.returncode == 1
    assert "is no recipe" in done.stderr
    assert words in done.stderr


def test_every_recipe_is_one() -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import run as script
    finally:
        sys.path.remove(str(SCRIPT.parent))
    assert [script.Recipe.read(file).name for file in sorted((SCRIPT.parent / "recipes").glob("*.toml"))]
