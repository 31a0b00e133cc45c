"""An epoch whose reward fails in every way there is: no advantage is altered by it, and the metrics tell.

See `epochs` for how an epoch comes without a model.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from epochs import PROMPTS, brightness, by_slot, epoch, level_of, made_up, metrics
from flowfactory.contracts.reward import Score
from flowfactory.contracts.types import Sample
from flowfactory.rewards.advantages import Scores, advantages
from flowfactory.rewards.asking import RewardError
from flowfactory.sampling.chains import Chains
from flowfactory.sampling.source import Collected
from torch import Tensor

SLOTS = {"first": 0, "middle": 2, "last": PROMPTS - 1}
TIMEOUT = 0.4


# --- ways to fail ----------------------------------------------------------------------------------------------------


def dead_server(batch: Sequence[Sample]) -> Any:
    return urllib.request.urlopen("http://127.0.0.1:9", timeout=1)  # the discard port, where nobody listens


def slow(batch: Sequence[Sample]) -> list[Score]:
    time.sleep(1.5 * TIMEOUT)
    return brightness(batch)


WAYS: dict[str, Callable[[Sequence[Sample]], Any]] = {
    "nan": lambda batch: [math.nan, *brightness(batch)[1:]],
    "infinity": lambda batch: [*brightness(batch)[1:], math.inf],
    "too few": lambda batch: brightness(batch)[1:],
    "too many": lambda batch: [*brightness(batch), 0.5],
    "text": lambda batch: ["0.5"] * len(batch),
    "nothing": lambda batch: None,
    "exception": lambda batch: 1 / 0,
    "exit": lambda batch: sys.exit(1),
    "timeout": slow,
    "dead server": dead_server,
}


class Faulty:
    """Scores brightness, but fails in one `way` whenever it is asked about `slot`; at most `times` times."""

    def __init__(self, way: str, slot: int, times: int = 10**9) -> None:
        self.way, self.slot, self.left = WAYS[way], slot, times

    def __call__(self, batch: Sequence[Sample]) -> Any:
        if batch[0].slot == self.slot and self.left > 0:
            self.left -= 1
            return self.way(batch)
        return brightness(batch)


def over_all(scores: Scores, groups: Tensor) -> Tensor:
    """With one standard deviation for the whole epoch."""
    return advantages(scores.values, scores.weights, groups, "sum", "global")


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chains, "sample", made_up)


# --- what must hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("place", SLOTS)
@pytest.mark.parametrize("way", WAYS)
def test_a_failed_group_is_left_out_and_no_other_is_altered(
    tmp_path: Path, way: str, place: str, overlap: bool, world: int
) -> None:
    clean = by_slot(epoch(tmp_path, {"r": brightness}))
    slot = SLOTS[place]
    keys = {"r": {"on_error": "drop-group", "timeout": TIMEOUT if way == "timeout" else 30.0}}
    outcomes = epoch(tmp_path, {"r": Faulty(way, slot)}, keys, overlap, world)
    found = by_slot(outcomes)
    assert all(math.isnan(a) for a in found.pop(slot))
    assert found == {s: a for s, a in clean.items() if s != slot}
    for outcome in outcomes:
        told = metrics(outcome)
        assert told["reward/dropped_groups"] == told["reward/r/failed_groups"] == told["reward/r/failed_calls"] == 1
    (line,) = (tmp_path / "failures" / "failures.jsonl").read_text().splitlines()
    assert (json.loads(line)["slot"], json.loads(line)["label"]) == (slot, "r")
    assert (tmp_path / "failures" / json.loads(line)["file"]).is_file()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "timeout"])
def test_a_failure_that_passes_leaves_no_trace_but_a_count(tmp_path: Path, way: str, overlap: bool, world: int) -> None:
    clean = epoch(tmp_path, {"r": brightness})
    outcomes = epoch(tmp_path, {"r": Faulty(way, 2, times=2)}, {"r": {"retries": 2}}, overlap, world)
    assert by_slot(outcomes) == by_slot(clean)
    told = metrics(outcomes[0])
    assert told["reward/r/failed_calls"] == 2
    assert told["reward/dropped_groups"] == told["reward/r/failed_groups"] == 0
    assert told["reward/r/mean"] == pytest.approx(metrics(clean[0])["reward/r/mean"])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("place", SLOTS)
def test_abort_ends_every_process_with_the_reason(tmp_path: Path, place: str, overlap: bool, world: int) -> None:
    outcomes = epoch(tmp_path, {"r": Faulty("nan", SLOTS[place])}, {"r": {"on_error": "abort"}}, overlap, world)
    for outcome in outcomes:
        assert isinstance(outcome, RewardError)
        assert "reward 'r' returned nan" in str(outcome)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("allowed", "ends"), [(0.5, False), (0.3, True)])
def test_losing_more_groups_than_allowed_ends_the_run(tmp_path: Path, world: int, allowed: float, ends: bool) -> None:
    def half(batch: Sequence[Sample]) -> Any:
        return 1 / 0 if batch[0].slot in (0, 3, 5) else brightness(batch)

    outcomes = epoch(tmp_path, {"r": half}, {"r": {"on_error": "drop-group", "max_dropped": allowed}}, world=world)
    if ends:
        assert all(isinstance(outcome, RewardError) for outcome in outcomes)
        assert "its `max_dropped` allows 30%" in str(outcomes[0])
    else:
        assert metrics(outcomes[0])["reward/dropped_groups"] == 3


def test_spreads_over_the_whole_epoch_are_those_of_the_groups_that_remain(tmp_path: Path) -> None:
    keys = {"r": {"on_error": "drop-group"}}
    outcomes = epoch(tmp_path, {"r": Faulty("nan", 2)}, keys, compare=over_all)
    outcome = outcomes[0]
    assert isinstance(outcome, Collected)
    levels = torch.tensor([level_of(m) for m in outcome.members], dtype=torch.float32).double()
    slots = torch.tensor([m.group.slot for m in outcome.members])
    kept = slots != 2
    expected = advantages({"r": levels[kept]}, {"r": 1.0}, slots[kept], "sum", "global")
    torch.testing.assert_close(outcome.advantages[kept], expected, atol=1e-12, rtol=0)


def test_the_other_rewards_of_a_dropped_group_are_left_out_with_it(tmp_path: Path) -> None:
    both = epoch(tmp_path, {"bad": Faulty("nan", 2), "good": brightness}, {"bad": {"on_error": "drop-group"}})
    found = by_slot(both)
    assert all(math.isnan(a) for a in found[2])
    assert not any(math.isnan(a) for slot, group in found.items() for a in group if slot != 2)


def test_a_reward_that_is_only_watched_drops_nothing(tmp_path: Path) -> None:
    clean = by_slot(epoch(tmp_path, {"r": brightness}))
    watched = {"on_error": "drop-group", "weight": 0.0}
    outcomes = epoch(tmp_path, {"r": brightness, "watched": Faulty("nan", 2)}, {"watched": watched})
    assert by_slot(outcomes) == clean
    told = metrics(outcomes[0])
    assert (told["reward/dropped_groups"], told["reward/watched/failed_groups"]) == (0, 1)


def test_a_constant_reward_teaches_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flowfactory"):
        outcomes = epoch(tmp_path, {"r": lambda batch: [0.1] * len(batch)})
    assert {a for group in by_slot(outcomes).values() for a in group} == {0.0}
    assert "reward 'r' gave every sample 0.1; nothing is learned from it" in caplog.text
    told = metrics(outcomes[0])
    assert told["reward/zero_std_groups"] == told["reward/r/zero_std_groups"] == told["reward/r/saturation"] == 1.0


def test_a_trainer_that_overlooks_missing_scores_cannot_train_on_them(tmp_path: Path) -> None:
    def careless(scores: Scores, groups: Tensor) -> Tensor:
        return scores.values["r"].nan_to_num(5.0)

    outcomes = epoch(tmp_path, {"r": Faulty("nan", 2)}, {"r": {"on_error": "drop-group"}}, compare=careless)
    assert all(math.isnan(a) for a in by_slot(outcomes)[2])
