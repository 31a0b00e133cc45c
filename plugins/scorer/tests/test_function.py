"""The function that is served: found, called, its answers checked; and how little its host needs."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flowfactory_scorer
import numpy as np
import pytest
from flowfactory_scorer.function import WrongAnswer, load, scorer
from flowfactory_scorer.wire import Record

SOURCE = Path(flowfactory_scorer.__file__).parent


def record(level: int, **keys: Any) -> Record:
    return Record("a room", "blurry", {"lamps": 3}, np.full((2, 4, 3), level, np.uint8), **keys)


def asked(answer: Any, count: int = 1) -> list[float | None]:
    return scorer(lambda images, prompts, rows: answer)([record(0)] * count)


def test_a_function_sees_pictures_prompts_and_rows() -> None:
    seen: list[Any] = []

    def score(images: Any, prompts: Any, rows: Any) -> list[float]:
        seen.extend([images, prompts, rows])
        return [1.0, 2.0]

    condition = np.zeros((5, 6, 3), np.uint8)
    video = Record("a film", None, {}, np.stack([np.zeros((2, 4, 3), np.float32), np.ones((2, 4, 3), np.float32)]))
    assert scorer(score)([record(7, images=[condition]), video]) == [1.0, 2.0]
    (image, frames), prompts, (row, _) = seen
    assert (image.size, image.getpixel((0, 0))) == ((4, 2), (7, 7, 7))
    assert [frame.getpixel((0, 0)) for frame in frames] == [(0, 0, 0), (255, 255, 255)]
    assert prompts == ["a room", "a film"]
    assert [picture.size for picture in row.pop("images")] == [(6, 5)]
    assert row == {"prompt": "a room", "negative_prompt": "blurry", "metadata": {"lamps": 3}}


@pytest.mark.parametrize("answer", [[0.5], (0.5,), np.array([0.5]), [np.float32(0.5)], iter([0.5])])
def test_numbers_of_any_library_are_scores(answer: Any) -> None:
    assert asked(answer) == [0.5]


def test_a_total_with_parts_is_a_score() -> None:
    given = {"total": np.float32(0.5), "parts": {"colour": 1, "count": None}}
    assert asked([given]) == [{"total": 0.5, "parts": {"colour": 1.0, "count": None}}]
    assert asked([given | {"words": {"count": 3}}])[0]["words"] == {"count": "3"}


def test_none_is_no_score() -> None:
    assert asked([None, 1], 2) == [None, 1.0]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([], "returned 0 scores for 1 samples"),
        ([1, 2], "returned more than 1 scores"),
        (iter(int, 1), "returned more than 1 scores"),
        ({0: 1.0}, "returned a dict"),
        ("1", "returned a str"),
        ([math.nan], "returned nan, not a finite number"),
        ([math.inf], "returned inf, not a finite number"),
        ([True], "returned True, not a finite number"),
        ([{"total": 1.0}], "not a number nor a total with parts"),
        ([{"total": 1.0, "parts": [1]}], "not a number nor a total with parts"),
        ([{"total": 1.0, "parts": {}, "words": "x"}], "not a number nor a total with parts"),
        ([{"total": None, "parts": {}}], "returned None, not a finite number"),
        ([{"total": 1.0, "parts": {"a": math.nan}}], "returned nan, not a finite number"),
        (["1"], "returned '1', not a finite number"),
        ([[1, 2]], r"returned \[1, 2\], not a finite number"),
    ],
)
def test_anything_else_is_refused(answer: Any, why: str) -> None:
    with pytest.raises(WrongAnswer, match=why):
        asked(answer)


def test_a_function_is_found_by_file_or_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside.py").write_text("VALUE = 4\n")
    (tmp_path / "scores.py").write_text("import beside\nscore = lambda images, prompts, rows: [beside.VALUE]\n")
    assert load(f"{tmp_path / 'scores.py'}:score")([], [], []) == [4]
    assert load("math:sqrt")(4) == 2  # type: ignore[call-arg,arg-type]
    with pytest.raises(ValueError, match="has no function 'scores'"):
        load(f"{tmp_path / 'scores.py'}:scores")
    with pytest.raises(ValueError, match="math has no function 'pi'"):
        load("math:pi")


def imports(path: Path) -> Sequence[str]:
    nodes = ast.walk(ast.parse(path.read_text(), feature_version=(3, 9)))
    modules = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    nodes = ast.walk(ast.parse(path.read_text(), feature_version=(3, 9)))
    return modules + [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*.py")), ids=lambda path: path.name)
def test_the_host_is_of_python_3_9_and_needs_numpy_and_pillow_only(path: Path) -> None:
    foreign = {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names
    assert foreign <= {"numpy", "PIL", "flowfactory_scorer"}


def test_there_is_a_host_to_look_at() -> None:
    assert len(list(SOURCE.glob("*.py"))) >= 5


def test_serving_other_machines_needs_a_token() -> None:
    command = [sys.executable, "-m", "flowfactory_scorer", "math:sqrt", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "set FLOWFACTORY_TOKEN to a secret first" in done.stderr
