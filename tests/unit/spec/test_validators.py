"""What a plugin says of a key beyond bounds, and of a function's name: told at the key's own line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from flowfactory.contracts.key import Function, key
from flowfactory.spec import toml
from flowfactory.spec.holdings import by_content
from flowfactory.spec.reader import Reader
from flowfactory.spec.schema import value_schema


@attrs.frozen(kw_only=True)
class Keys:
    low: int = key("Lowest.", default=0, ge=0)
    high: int = key("Highest.", default=9)
    score: Function | None = key("Which.", default=None)
    words: tuple[str, ...] = key("Some.", default=())

    @high.validator
    def _above_low(self, attribute: attrs.Attribute[Any], value: int) -> None:
        if value < self.low:
            raise ValueError(f"expected at least `low`, which is {self.low}, not {value}")

    @words.validator
    def _are_words(self, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
        if len(value) == 1 and self.low:
            raise ValueError("expected none, or a word and another")
        for word in value:
            if not word.isalpha():
                raise ValueError(f"expected a word, not {word!r}")
        for word in value:
            if value.count(word) > 1:
                raise ValueError(f"{word!r} is there twice")


def read(folder: Path, text: str) -> tuple[Keys | None, list[tuple[int, str]]]:
    reader = Reader()
    made = reader.table(toml.parse(text, folder / "keys.toml"), Keys, "[keys]")
    return made, [(one.place.line if one.place else 0, one.what) for one in reader.problems]


def test_a_validator_beside_a_declaration_is_heard(tmp_path: Path) -> None:
    assert read(tmp_path, "low = 3\nhigh = 3\n")[1] == []
    assert read(tmp_path, "low = 3\nhigh = 2\n")[1] == [
        (2, "`high`: expected at least `low`, which is 3, not 2"),
    ]


def test_bounds_come_first_and_a_validator_does_not_see_what_is_unsound(tmp_path: Path) -> None:
    assert read(tmp_path, "low = -1\nhigh = 2\n")[1] == [(1, "`low`: expected a number at least 0, not -1")]


def test_functions_are_located_and_told_where_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def score(): pass\n")
    made, problems = read(tmp_path, 'score = "./a.py:score"\n')
    assert (made, problems) == (Keys(score=Function(f"{tmp_path / 'a.py'}:score")), [])
    ((line, what),) = read(tmp_path, 'low = 1\nscore = "./a.py:other"\n')[1]
    assert (line, what.startswith("`score`: ")) == (2, True)
    assert read(tmp_path, "score = 3\n")[1] == [(1, "`score`: expected a string, not 3")]


def test_a_function_counts_by_its_files_content(tmp_path: Path) -> None:
    def content(folder: str, text: str) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.py").write_text(text)
        return by_content(Keys(score=Function(f"{tmp_path / folder / 'a.py'}:score")))["score"]

    assert content("one", "x") == content("two", "x") != content("two", "y")
    assert by_content(Keys(score=Function("package.module:score")))["score"] == ["package.module", "score"]


def test_an_editor_sees_a_string() -> None:
    assert value_schema(Function, attrs.fields(Keys).score.metadata["flowfactory"])["type"] == "string"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            '["a b", "fine", "1"]',
            [(1, "`words[0]`: expected a word, not 'a b'"), (1, "`words[2]`: expected a word, not '1'")],
        ),
        ('["1", "1"]', [(1, "`words[0]`: expected a word, not '1'"), (1, "`words[1]`: expected a word, not '1'")]),
        ('["same", "same"]', [(1, "`words`: 'same' is there twice")]),
        ('["same", "1", "same"]', [(1, "`words[1]`: expected a word, not '1'"), (1, "`words`: 'same' is there twice")]),
        (
            '["a b", 3, "1"]',
            [
                (1, f"`words[{n}]`: expected {what}")
                for n, what in ((0, "a word, not 'a b'"), (1, "a string, not 3"), (2, "a word, not '1'"))
            ],
        ),
        ('["fine", "good"]', []),
        ('["1"]', [(1, "`words`: expected a word, not '1'")]),
    ],
)
def test_every_entry_that_a_validator_is_against_is_told(
    tmp_path: Path, words: str, told: Sequence[tuple[int, str]]
) -> None:
    assert sorted(read(tmp_path, f"words = {words}\n")[1]) == sorted(told)


def test_what_it_says_of_an_array_is_not_said_of_its_entries(tmp_path: Path) -> None:
    assert read(tmp_path, 'low = 1\nwords = ["fine", "good"]\n')[1] == []
    assert read(tmp_path, 'low = 1\nwords = ["fine"]\n')[1] == [(2, "`words`: expected none, or a word and another")]
