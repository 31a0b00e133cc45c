"""A run that is killed amid a look, a branch, a reward's gradient or the turn of a role goes on to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kills
import pytest
from end_to_end.test_credit import ESTIMATES, FAN, PRUNED, STEPS
from end_to_end.test_gradients import DRAFT, REFL
from end_to_end.test_resume import assert_same
from end_to_end.test_roles import DMD, TDM
from forks import received, start

QUICK = (
    "run.save_samples=0",
    "sampling.prompts=2",
    "sampling.micro_batch=2",
    "optimizer.micro_batch=1",
    "eval.every=0",
    "checkpoint.every=1",
    "lora.rank=2",
)
ONE = ("sampling.steps=3", "sampling.group=1")


def case(name: str, changes: Sequence[str], *wanted: str) -> Any:
    return pytest.param([*QUICK, *changes], wanted, id=name)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        case("draft", [*ONE, *DRAFT], "reward", "backward", "step"),
        case("refl", [*ONE, *REFL], "terms", "backward"),
        case("dmd", DMD, "sampled", "trained-fake", "step-fake", "trained", "step"),
        case("tdm", TDM, "terms", "trained-fake", "trained"),
        case("completed", ["sampling.group=2", *STEPS], "look", "score"),
        case("estimated", ["sampling.group=2", *ESTIMATES], "look"),
        case("fan", FAN, "grow", "score"),
        case("pruned", PRUNED, "grow", "score"),
    ],
)
def test_it_goes_on_to_the_bit_wherever_it_is_killed(spec: Path, changes: Sequence[str], wanted: Sequence[str]) -> None:
    unsets = ["full", *(["reward"] if "fake" in str(wanted) else [])]
    runs = spec.parent / "runs"
    runs.mkdir()
    process, results = start(kills.amid, spec, runs, changes, unsets, wanted)
    (counts,) = received(results)
    process.join()
    assert process.exitcode == 0, (runs / "said.txt").read_text()
    for name in wanted:
        assert counts[name] > 1
        assert_same(runs / "whole", runs / name)
