"""Functions that a spec names: found without importing anything. And where caches are kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flowfactory.data.locations import locate, locate_function
from flowfactory.data.store import user_folder
from flowfactory.errors import RunError

MODULE = """
raise SystemExit("this file was run")
from elsewhere import borrowed as lent
try:
    import numpy
    def maybe(): pass
except ImportError:
    fallback = None
if True:
    inner = lambda: 0
class Scorer:
    def method(self): pass
def score(images):
    local = used
    return local
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scores.py").write_text(MODULE)
    (tmp_path / "star.py").write_text("from os import *\n")
    (tmp_path / "newer.py").write_text("syntax of another Python {\n")
    (tmp_path / "odd.py").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "dir.py").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["score", "lent", "numpy", "maybe", "fallback", "inner", "Scorer"])
def test_what_a_file_defines_is_found(folder: Path, name: str) -> None:
    assert locate_function(f"./scores.py:{name}", folder) == f"{folder / 'scores.py'}:{name}"
    assert locate_function(f"{folder}/scores.py:{name}", Path("/")) == f"{folder / 'scores.py'}:{name}"


@pytest.mark.parametrize("written", ["star.py:anything", "newer.py:anything"])
def test_what_only_running_a_file_would_tell_is_believed(folder: Path, written: str) -> None:
    assert locate_function(written, folder).endswith(written)


def test_modules_are_for_whoever_has_them(folder: Path) -> None:
    assert locate_function("no_such.package:score", folder) == "no_such.package:score"


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("./scores.py:scores", "defines no 'scores'; did you mean `score`"),
        ("./scores.py:method", "defines no 'method'"),
        ("./scores.py:local", "defines no 'local'"),
        ("./scores.py:used", "defines no 'used'"),
        ("./scores.py:zebra", "is it the right file"),
        ("./score.py:score", "there is no file .*did you mean `scores.py`"),
        ("./dir.py:score", "there is no file"),
        ("./odd.py:score", "cannot be read: it is not UTF-16 text"),
        ("scores.py", "expected './file.py:function' or 'package.module:function'"),
        ("scores.py:", "expected"),
        ("scores.py:a b", "expected"),
        (":score", "expected"),
        ("", "expected"),
        ("sc\0ores.py:score", "expected"),
    ],
)
def test_what_is_not_there_is_told(folder: Path, written: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        locate_function(written, folder)


def test_caches_have_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", "/a/b")
    assert user_folder() == Path("/a/b")
    monkeypatch.delenv("FLOWFACTORY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert user_folder() == Path("/c/flowfactory")
    monkeypatch.setenv("FLOWFACTORY_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(RunError, match=r"there is no home to keep .*FLOWFACTORY_CACHE in the environment"):
        user_folder()


@pytest.mark.parametrize(
    ("written", "exists", "said"),
    [
        ("https://huggingface.co/some-org/FLUX.1-dev", False, "is written as `some-org/FLUX.1-dev`"),
        ("https://hf.co/some-org/name/tree/main", False, "is written as `some-org/name`"),
        ("https://huggingface.co/datasets/a/b/blob/main/x.jsonl", True, "is written as hf://datasets/OWNER/NAME/PATH"),
        ("https://example.com/model", False, "download it first"),
        ("$HOME/models/flux", False, "variables of the environment are not put in here, only `~`"),
        ("${DATA}/prompts.txt", True, "variables of the environment are not put in here"),
    ],
)
def test_what_other_programs_take_as_a_path_is_said_in_ours(
    folder: Path, written: str, exists: bool, said: str
) -> None:
    with pytest.raises(ValueError, match=f"there is no .*; .*{re.escape(said)}"):
        locate(written, folder, exists)
