"""The examples pass `flowfactory check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from flowfactory.cli import main

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_valid(example):
    result = CliRunner().invoke(main, ["check", str(example)])
    assert result.exit_code == 0, result.output


def test_there_are_examples():
    assert len(EXAMPLES) == 2
