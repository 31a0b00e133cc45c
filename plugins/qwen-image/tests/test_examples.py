"""The examples pass `flowfactory check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from flowfactory.cli.main import main

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_valid(example, capsys):
    assert main(["check", str(example)]) == 0, capsys.readouterr().err


def test_there_are_examples():
    assert len(EXAMPLES) == 2
