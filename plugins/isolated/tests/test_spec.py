"""What the spec may say, told where it is wrong; nothing is imported or built for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry
from flowfactory.errors import SpecError
from flowfactory.plan.plan import make_plan
from flowfactory.spec.structure import load_rewards, load_spec

EXAMPLE = Path(__file__).parents[1] / "examples" / "shapes-isolated.toml"
Read = Callable[[str], object]


@pytest.fixture
def told(tmp_path: Path) -> Callable[[str], list[tuple[int, str]]]:
    """Line and words of each problem with the keys of a table."""
    (tmp_path / "scores.py").write_text("import os\n\ndef score(images, prompts, rows):\n    raise SystemExit\n")
    (tmp_path / "star.py").write_text("from os.path import *\n")
    (tmp_path / "old.py").write_text("print 'Python 2'\n")
    (tmp_path / "needs.txt").write_text("packaging==21.3\n")
    (tmp_path / "empty").mkdir()

    def read(keys: str) -> list[tuple[int, str]]:
        (tmp_path / "spec.toml").write_text(f'[[reward]]\nname = "isolated"\n{keys}\n')
        try:
            load_rewards(tmp_path / "spec.toml", Registry())
        except SpecError as error:
            return [
                (problem.place.line if problem.place else 0, problem.what + problem.hint) for problem in error.problems
            ]
        return []

    return read


@pytest.mark.parametrize(
    "keys",
    [
        'score = "./scores.py:score"',
        'score = "scores.py:score"\nrequirements = ["packaging==21.3", "x[y]>=1; python_version < \'3.10\'"]',
        'score = "./star.py:score"',
        'score = "./old.py:score"',
        'score = "hpsv3.scoring:score"\nrequirements = "needs.txt"\npython = "3.10"',
    ],
)
def test_sound_tables(told: Callable[[str], list[tuple[int, str]]], keys: str) -> None:
    assert told(keys) == []


@pytest.mark.parametrize(
    ("keys", "line", "why"),
    [
        ("requirements = []", 1, "lacks `score`"),
        ('score = "scores.py"', 3, "expected './file.py:function' or 'package.module:function', not 'scores.py'"),
        ('score = "./score.py:score"', 3, "did you mean `scores.py`?"),
        ('score = "./scores.py:scores"', 3, "defines no 'scores'; did you mean `score`?"),
        ('score = "./empty:score"', 3, "expected './file.py:function'"),
        ('score = "a b:score"', 3, "expected './file.py:function'"),
        ("score = 3", 3, "expected a string"),
        ('score = "os:path"\nrequirements = ["hpsv3=1.0"]', 4, "not 'hpsv3=1.0'"),
        ('score = "os:path"\nrequirements = ["-e ./here"]', 4, "options and local folders go into a requirements file"),
        ('score = "os:path"\nrequirements = "nothing.txt"', 4, "there is no"),
        ('score = "os:path"\nrequirements = "empty"', 4, "is a folder"),
        ('score = "os:path"\nrequirements = 3', 4, "expected"),
        ('score = "os:path"\npython = "2.7"', 4, "expected a string that matches"),
        ('score = "os:path"\nenvironment = "empty"', 4, "is no environment of Python: it has no bin/python"),
        (f'score = "os:path"\npython = "3.9"\nenvironment = "{sys.prefix}"', 5, "have no use beside it"),
        ('score = "os:path"\nrestarts = -1', 4, "expected a number at least 0"),
    ],
)
def test_mistakes_are_told_where_they_are(
    told: Callable[[str], list[tuple[int, str]]], keys: str, line: int, why: str
) -> None:
    ((found, words),) = told(keys)
    assert found == line
    assert why in words


def test_check_and_plan_neither_build_nor_import(tmp_path: Path) -> None:
    code = (
        "import sys; from flowfactory import main;"
        "codes = [main([verb, sys.argv[1]]) for verb in ('check', 'plan')];"
        "sys.exit(codes != [0, 0] or 'torch' in sys.modules)"
    )
    environment = {"FLOWFACTORY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLE)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache" / "environments").exists()


def test_the_digest_is_of_the_functions_file_and_not_of_its_place(tmp_path: Path) -> None:
    def digest(folder: str, text: str, name: str = "score") -> str:
        file = tmp_path / folder / "scores.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        spec = load_spec(EXAMPLE, registry, [f"reward[1].score={file}:{name}"])
        return make_plan(spec, registry.versions(), 1).digest

    registry, text = Registry(), "def score(): pass\ndef other(): pass\n"
    first = digest("one", text)
    assert digest("two", text) == first
    assert digest("one", text + "#") != first
    assert digest("one", text, "other") != first
