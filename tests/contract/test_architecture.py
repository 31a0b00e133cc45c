"""The house is what its picture and its page say: wings, floors, sizes, and every file and name that is told of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import picture
import pytest
from picture import CORE, HOUSE, ROOT, boxes, floors

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WINGS = sorted(path.parent.name for path in HOUSE.glob("*/__init__.py"))
MENTIONED = sorted(set(re.findall(r"`((?:[\w-]+/)*\w+\.py)(?:: ([\w.]+))?`", PAGE)))
FOLDERS = sorted(set(re.findall(r"`((?:\w+/)+)`", PAGE)))


def files(wing: str) -> list[Path]:
    """A wing's own modules."""
    return sorted((HOUSE / wing).glob("*.py"))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


# --- the wings -----------------------------------------------------------------------------------------------------


def test_the_minimal_core_is_small() -> None:
    assert sum(lines(path) for wing in CORE for path in files(wing)) < 2000


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_fits_a_glance(wing: str) -> None:
    assert len(files(wing)) <= 12
    assert not [path for path in (HOUSE / wing).rglob("*.py") if lines(path) > 300]


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_says_what_it_is_for_and_imports_nothing(wing: str) -> None:
    """The conformance kit is public by its wing's name, so that one offers names."""
    module = ast.parse((HOUSE / wing / "__init__.py").read_text(encoding="utf-8"))
    about = ast.get_docstring(module)
    assert about is not None
    assert len(about.split("\n\n")) > 1, "what it is for, then what goes in and comes out"
    assert wing == "testing" or len(module.body) == 1


def test_tests_mirror_the_wings() -> None:
    folders = {path.name for path in (ROOT / "tests" / "unit").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= set(WINGS)


# --- the picture ---------------------------------------------------------------------------------------------------


def test_the_picture_is_up_to_date() -> None:
    drawn = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert drawn == picture.picture(), "run: python docs/tools/picture.py docs/images/architecture.svg"


def test_its_boxes_are_the_wings() -> None:
    modules = [path.stem for path in HOUSE.glob("[!_]*.py")]
    assert sorted(name for floor in floors() for name in floor) == sorted([*WINGS, *modules])
    assert [box.name for box in boxes()] == [name for floor in floors() for name in floor]


def test_no_box_lies_on_another_and_all_words_have_room() -> None:
    for one, other in combinations(boxes(), 2):
        aside = one.x + one.width <= other.x or other.x + other.width <= one.x
        assert aside or abs(one.y - other.y) >= picture.HEIGHT
    for box in boxes():
        assert box.x >= 0
        assert box.x + box.width <= picture.WIDTH
        assert 0 < len(box.words) * picture.LETTER <= box.width


# --- the page ------------------------------------------------------------------------------------------------------


def place(path: str) -> Path:
    """Where a file is that the page names: of core, or of the repository."""
    return ROOT / path if path.startswith("plugins/") else HOUSE / path


def names(module: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """What a module defines, and its classes, by dotted names."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from names(node, f"{prefix}{node.name}.")


@pytest.mark.parametrize(("path", "name"), MENTIONED)
def test_what_is_told_of_is_there(path: str, name: str) -> None:
    assert place(path).is_file()
    assert not name or name in set(names(ast.parse(place(path).read_text(encoding="utf-8"))))


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_there(folder: str) -> None:
    assert (HOUSE / folder).is_dir()


def test_every_question_has_an_answer() -> None:
    rows = PAGE.partition("## Ten questions")[2].splitlines()[4:]
    assert len(rows) == 10
    assert all(re.search(r"\|.*\?.*\|.*`[\w/]+\.py: [\w.]+`", row) for row in rows)
    assert len(MENTIONED) > 40
    assert len(FOLDERS) > 3
