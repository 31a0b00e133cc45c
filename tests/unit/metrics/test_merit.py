"""Which evaluation is the best: the weights, the sign, the ties, and what does not count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry
from flowfactory.metrics.merit import Merit, best, evaluated, judge, score, watched
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec
from specs import SOURCES, edited, lay


def made(folder: Path, *sets: str) -> Spec:
    """A spec with the rewards `bright`, of weight 1, and `dark`, of weight -0.5."""
    return load_spec(lay(folder), Registry(), sets)


def metrics(bright: float, dark: float) -> dict[str, float]:
    return {"eval/bright/mean": bright, "eval/dark/mean": dark, "reward/bright/mean": 100.0}


def test_the_score_weighs_means_as_the_spec_does(tmp_path: Path) -> None:
    assert judge(made(tmp_path), 3, metrics(0.75, 0.5)) == Merit(3, 0.5)


@pytest.mark.parametrize(("label", "value"), [("bright", 0.75), ("dark", -0.5)])
def test_of_one_reward_more_is_better_unless_less_is_wanted(tmp_path: Path, label: str, value: float) -> None:
    spec = made(tmp_path, f"checkpoint.best=eval/{label}/mean")
    assert judge(spec, 3, metrics(0.75, 0.5)) == Merit(3, value)


def test_rewards_of_sources_that_are_not_evaluated_do_not_count(tmp_path: Path) -> None:
    spec = load_spec(lay(tmp_path, edited(SOURCES)), Registry(), ["reward[1].sources=['other']"])
    assert [entry.label for entry in evaluated(spec)] == ["bright"]
    assert judge(spec, 3, {"eval/bright/mean": 0.75}) == Merit(3, 0.75)


def test_rewards_of_the_evaluation_come_first(tmp_path: Path) -> None:
    spec = made(tmp_path, 'eval.reward=[{name="bright", label="other", weight=2.0}]')
    assert judge(spec, 1, {**metrics(9, 9), "eval/other/mean": 0.25}) == Merit(1, 0.5)


@pytest.mark.parametrize(
    ("sets", "epoch", "line"),
    [
        ((), 0, metrics(1, 1)),
        ((), 2, {"reward/bright/mean": 1.0}),
        ((), 2, {"eval/bright/mean": 1.0}),
        ((), 2, metrics(math.nan, 1)),
        ((), 2, metrics(math.inf, 1)),
        (("checkpoint.best=none",), 2, metrics(1, 1)),
    ],
)
def test_what_does_not_count(tmp_path: Path, sets: Sequence[str], epoch: int, line: dict[str, float]) -> None:
    assert judge(made(tmp_path, *sets), epoch, line) is None


def test_the_earliest_of_equal_ones_is_the_best(tmp_path: Path) -> None:
    lines = [(epoch, metrics(bright, 0)) for epoch, bright in enumerate([0.9, 0.2, 0.5, 0.5, 0.4])]
    assert best(made(tmp_path), lines) == Merit(2, 0.5)
    assert best(made(tmp_path), lines[:1]) is None


def test_the_score_that_is_shown_is_what_the_best_goes_by(tmp_path: Path) -> None:
    spec = made(tmp_path)
    assert score("eval", spec.rewards, metrics(0.75, 0.5)) == {"eval/score": 0.5}
    assert judge(spec, 1, metrics(0.75, 0.5)) == Merit(1, 0.5)
    assert score("reward", spec.rewards, {"reward/bright/mean": 3.0, "reward/dark/mean": 2.0}) == {"reward/score": 2.0}


@pytest.mark.parametrize("line", [{}, {"eval/bright/mean": 1.0}, metrics(math.nan, 1), metrics(math.inf, 1)])
def test_without_all_means_there_is_no_score(tmp_path: Path, line: dict[str, float]) -> None:
    assert score("eval", made(tmp_path).rewards, line) == {}


def test_what_has_no_weight_is_watched_and_not_missed(tmp_path: Path) -> None:
    spec = made(tmp_path, "reward[1].weight=0")
    assert watched(spec) == {"reward/dark", "eval/dark"}
    assert score("eval", spec.rewards, {"eval/bright/mean": 0.25}) == {"eval/score": 0.25}
    other = made(tmp_path, 'eval.reward=[{name="bright", weight=0.0}]')
    assert watched(other) == {"eval/bright"}
    assert score("eval", other.eval.rewards, metrics(1, 1)) == {}
