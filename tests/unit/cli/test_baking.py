"""Words of people arrive in a new plugin as they were typed, or are refused."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from flowfactory.cli.baking import bake
from flowfactory.cli.main import main

WORDS = [
    "how happy 🙂 a face is",
    "𠮷田",
    "{{ 7*7 }}",
    "{% raw %}{% endraw %}{# no #}",
    "{{ cookiecutter.name }} }} {",
    "a \"quote\", a \\ backslash, an 'apostrophe'",
    "two\nlines\tand a tab",
    "\x7f\x01",
    "'''\"\"\"",
    "</script> & <b>",
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("kind", ["adapter", "reward", "scheduler", "trainer"])
def test_words_arrive_as_typed(tmp_path: Path, kind: str, words: str) -> None:
    folder = bake(kind, "my-own", {"summary": words, "author": words}, tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["description"] == words
    assert project["authors"] == [{"name": words}]
    hooks = ast.parse((folder / "src" / "flowfactory_plugin_my_own" / "__init__.py").read_text(encoding="utf-8"))
    said = [ast.literal_eval(node.value) for node in hooks.body if isinstance(node, ast.Assign)]
    assert words in said


@pytest.mark.parametrize("name", ["none", "true", "exception", "reward", "sample", "print", "tensor", "class", "base"])
@pytest.mark.parametrize("kind", ["adapter", "reward", "scheduler", "trainer"])
def test_any_name_makes_sound_python(tmp_path: Path, kind: str, name: str) -> None:
    folder = bake(kind, name, {}, tmp_path)
    for file in folder.rglob("*.py"):
        module = ast.parse(file.read_text())
        classes = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
        imported = {
            alias.name
            for node in module.body
            if isinstance(node, ast.ImportFrom) and node.module in ("flowfactory", "torch", "collections.abc", "typing")
            for alias in node.names
        }
        assert not classes & imported


@pytest.mark.parametrize(
    ("kind", "name", "words", "said"),
    [
        ("reward", "None", "", "small letters"),
        ("trainer", "pickscore", "", "there is a package flowfactory-plugin-pickscore already"),
        ("reward", "a" * 250, "", "up to 60"),
        ("reward", "../x", "", "small letters"),
        ("reward", "shapes", "", "flowfactory-plugin-shapes's"),
        ("trainer", "grpo", "", "flowfactory-plugin-grpo's"),
        ("scheduler", "ode", "", "flowfactory's"),
        ("reward", "q", "a \ud83d", "no text"),
        ("reward", "q", "a \0", "no text"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, kind: str, name: str, words: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bake(kind, name, {"summary": words}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_in_the_users_home_is_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".cookiecutterrc").write_text("]: no yaml")
    monkeypatch.setenv("HOME", str(home))
    bake("reward", "my-own", {}, tmp_path / "new")
    assert [path.name for path in home.iterdir()] == [".cookiecutterrc"]
    monkeypatch.setenv("HOME", "/nonexistent")
    bake("reward", "my-own", {}, tmp_path / "new2")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["new", "reward", "my-own", "--into", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("licence", ["MIT", "BSD-3-Clause"])
def test_it_has_what_a_repository_needs(tmp_path: Path, licence: str) -> None:
    folder = bake("adapter", "my-own", {"license": licence, "author": "Ann Ödl"}, tmp_path)
    assert "Ann Ödl" in (folder / "LICENSE").read_text()
    assert licence.partition("-")[0] in (folder / "LICENSE").read_text()
    assert (folder / ".gitignore").is_file()
    assert "pytest" in (folder / ".github" / "workflows" / "test.yml").read_text()
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["urls"]
    readme = (folder / "README.md").read_text()
    assert "pip install flowfactory-plugin-my-own" in readme
    assert "is a whole spec:\n\n```console" in readme
