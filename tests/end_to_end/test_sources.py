"""A run with two sources, and rewards that score one of them or both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from end_to_end.conftest import SPEC, metrics
from flowfactory.cli.main import main
from forks import flowfactory

ONE = """prompts = "train.txt"
eval_prompts = "eval.txt"
"""
TWO = """
[[data.source]]
name = "animals"
prompts = "train.txt"
eval_prompts = "eval.txt"
share = 3

[[data.source]]
name = "colours"
prompts = "colours.parquet"
eval_prompts = "colours-eval.jsonl"
"""
REWARDS = """
[[reward]]
name = "redness"
label = "of-colours"
sources = ["colours"]

[[reward]]
name = "jpeg-compressibility"

[[eval.reward]]
name = "redness"
sources = ["colours"]

[[eval.reward]]
name = "jpeg-compressibility"
"""


@pytest.fixture
def mixed(spec: Path, checkpoint: Path) -> Path:
    """A spec with two sources; redness is asked of one only."""
    pq.write_table(pa.table({"prompt": ["red", "blue"], "n": [1, None]}), spec.parent / "colours.parquet")
    (spec.parent / "colours-eval.jsonl").write_text('{"prompt": "green"}\n{"prompt": "grey"}\n')
    text = SPEC.replace(ONE, TWO).replace('[[reward]]\nname = "redness"\n', REWARDS)
    spec.write_text(text.format(checkpoint=checkpoint))
    return spec


def test_each_epoch_is_shared_and_each_source_told_of(mixed: Path, run: Callable[..., Path]) -> None:
    folder = run("mixed", "run.epochs=3")
    before, *epochs = metrics(folder)
    for line in epochs:
        assert (line["source/animals/groups"], line["source/colours/groups"]) == (3, 1)
        assert line["source/colours/of-colours/mean"] == line["reward/of-colours/mean"]
        assert "source/animals/of-colours/mean" not in line
        parts = [line[f"source/{name}/jpeg-compressibility/mean"] for name in ("animals", "colours")]
        assert line["reward/jpeg-compressibility/mean"] == pytest.approx(0.75 * parts[0] + 0.25 * parts[1])
        assert line["train/gradient_norm"] > 0
    for line in (before, *epochs):
        parts = [line[f"source/{name}/eval/jpeg-compressibility/mean"] for name in ("animals", "colours")]
        assert line["eval/jpeg-compressibility/mean"] == pytest.approx((3 * parts[0] + 2 * parts[1]) / 5)
        assert line["source/colours/eval/redness/mean"] == line["eval/redness/mean"]
        assert "source/animals/eval/redness/mean" not in line
    shown = [json.loads(line) for line in (folder / "samples/eval-0000/samples.jsonl").read_text().splitlines()]
    assert [(one["prompt"], one["scores"]["redness"] is None) for one in shown] == [
        ("a tree", True), ("green", False), ("a house", True), ("grey", False), ("a lake", True)
    ]  # fmt: skip
    assert main(["report", str(folder)]) == 0


def test_it_goes_on_to_the_bit(mixed: Path) -> None:
    """Stopped after the first epoch, and resumed; the folder's own spec says all that is needed."""
    whole, halved = mixed.parent / "whole", mixed.parent / "halved"
    for folder, epochs in ((whole, "2"), (halved, "1")):
        code, said = flowfactory(mixed.parent, "run", mixed, "--folder", folder, f"--set=run.epochs={epochs}")
        assert code == 0, said
    code, said = flowfactory(mixed.parent, "resume", halved, "--epochs", "2")
    assert code == 0, said
    assert metrics(whole) == metrics(halved)


def test_one_source_with_a_name_runs_as_without(mixed: Path, run: Callable[..., Path], checkpoint: Path) -> None:
    mixed.write_text(SPEC.format(checkpoint=checkpoint))
    plain = metrics(run("plain"))
    named = f'[[data.source]]\nname = "all"\n{ONE}'
    mixed.write_text(SPEC.replace(f"[data]\n{ONE}", named).format(checkpoint=checkpoint))
    told = metrics(run("named"))
    assert [{k: v for k, v in line.items() if not k.startswith("source/")} for line in told] == plain


def test_plan_says_how_epochs_are_shared(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(mixed), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    numbers = {number["name"]: number for number in plan["numbers"]}
    assert (numbers["prompts_animals"]["value"], numbers["prompts_colours"]["value"]) == (3, 1)
    assert main(["plan", str(mixed), "--json", "--set=sampling.prompts=6"]) == 0
    plan = json.loads(capsys.readouterr().out)
    numbers = {number["name"]: number for number in plan["numbers"]}
    assert "which is 1.5: epochs take turns" in numbers["prompts_colours"]["reason"]
