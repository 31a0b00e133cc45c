"""Groups that teach nothing are replaced in further rounds: which, how often, and what is told of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from epochs import POOLS, PROMPTS, ROWS, SEED, brightness, by_slot, epoch, level_of, made_up, metrics
from flowfactory.contracts.reward import Score
from flowfactory.contracts.types import Sample
from flowfactory.rewards.session import Scored
from flowfactory.sampling.chains import Chains
from flowfactory.sampling.epochs import Group, plan_epoch, refilled
from flowfactory.sampling.judged import teach_nothing
from flowfactory.sampling.source import Collected
from flowfactory.spec.tables import RewardEntry
from support import Case, each

DROPPED: Mapping[str, Mapping[str, Any]] = {"r": {"on_error": "drop-group"}}


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chains, "sample", made_up)


def row_of(batch: Sequence[Sample]) -> int:
    return int(batch[0].row.prompt.removeprefix("prompt "))


class Deaf:
    """Scores brightness, but the same for all samples of some rows."""

    def __init__(self, *rows: int) -> None:
        self.rows = rows

    def __call__(self, batch: Sequence[Sample]) -> list[Score]:
        return [0.7] * len(batch) if row_of(batch) in self.rows else brightness(batch)


def expected(flat: Sequence[int], refill: int) -> tuple[dict[int, Group], int, int]:
    """What each slot holds in the end, how many rounds there were, and how many groups they made."""
    held = {group.slot: group for update in plan_epoch(SEED, 1, POOLS, PROMPTS, 1) for group in update}
    made = 0
    for number in range(1, refill + 1):
        wanting = [slot for slot, group in held.items() if group.row in flat]
        if not wanting:
            return held, number - 1, made
        held |= {slot: refilled(SEED, 1, POOLS, held[slot], number) for slot in wanting}
        made += len(wanting)
    return held, refill, made


def held(outcomes: Sequence[Collected | BaseException]) -> dict[int, Group]:
    """What each slot holds, over all processes."""
    found: dict[int, Group] = {}
    for outcome in outcomes:
        assert isinstance(outcome, Collected), outcome
        assert len(outcome.trajectories[range(len(outcome.members))].final) == len(outcome.members)
        found |= {member.group.slot: member.group for member in outcome.members}
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("flat", [(), (0,), (0, 1, 2), (0, 1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("refill", [1, 4])
def test_groups_whose_samples_score_the_same_are_replaced(
    tmp_path: Path, refill: int, flat: Sequence[int], world: int
) -> None:
    outcomes = epoch(tmp_path, {"r": Deaf(*flat)}, world=world, refill=refill)
    wanted, rounds, made = expected(flat, refill)
    assert held(outcomes) == wanted
    for outcome in outcomes:
        told = metrics(outcome)
        assert (told["refill/rounds"], told["refill/groups"]) == (rounds, made)
    for slot, advantages in by_slot(outcomes).items():
        assert (set(advantages) == {0.0}) == (wanted[slot].row in flat)
    assert by_slot(outcomes) == by_slot(epoch(tmp_path, {"r": Deaf(*flat)}, refill=refill))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_what_is_trained_on_is_what_was_scored(tmp_path: Path, world: int) -> None:
    for outcome in epoch(tmp_path, {"r": Deaf(0, 1, 2)}, world=world, refill=4):
        assert isinstance(outcome, Collected)
        made = torch.tensor([level_of(member) for member in outcome.members], dtype=torch.float32)
        deaf = torch.tensor([member.group.row in (0, 1, 2) for member in outcome.members])
        assert torch.equal(outcome.trajectories[range(len(outcome.members))].final[:, 0], made)
        assert torch.equal(outcome.scores["r"], torch.where(deaf, 0.7, made.double()))


@pytest.mark.parametrize("world", [1, 2])
def test_a_group_that_failed_is_replaced_and_the_failure_counted(tmp_path: Path, world: int) -> None:
    class Once:
        left = 1

        def __call__(self, batch: Sequence[Sample]) -> list[Score]:
            if batch[0].slot == 2 and self.left:
                self.left -= 1
                raise RuntimeError("away")
            return brightness(batch)

    clean = by_slot(epoch(tmp_path, {"r": brightness}))
    outcomes = epoch(tmp_path, {"r": Once()}, DROPPED, world=world, refill=2)
    found, told = by_slot(outcomes), metrics(outcomes[-1])
    assert not any(math.isnan(advantage) for advantage in found.pop(2))
    assert found == {slot: advantages for slot, advantages in clean.items() if slot != 2}
    assert held(outcomes)[2] == refilled(SEED, 1, POOLS, Group(2, 0), 1)
    assert (told["reward/r/failed_calls"], told["reward/dropped_groups"]) == (1, 0)
    assert (told["refill/rounds"], told["refill/groups"]) == (1, 1)
    assert (tmp_path / "failures" / "failures.jsonl").read_text().count('"slot": 2') == 1


@pytest.mark.parametrize("world", [1, 2])
def test_rounds_have_an_end(tmp_path: Path, world: int) -> None:
    def never(batch: Sequence[Sample]) -> list[Score]:
        return brightness(batch)[1:] if batch[0].slot == 2 else brightness(batch)

    outcomes = epoch(tmp_path, {"r": never}, DROPPED, world=world, refill=3)
    told = metrics(outcomes[0])
    assert (told["refill/rounds"], told["refill/groups"], told["reward/r/failed_calls"]) == (3, 3, 4)
    assert told["reward/dropped_groups"] == 1
    assert all(math.isnan(advantage) for advantage in by_slot(outcomes)[2])


def test_the_mean_score_is_that_before_any_group_is_replaced(tmp_path: Path) -> None:
    (before,), (after,) = (epoch(tmp_path, {"r": Deaf(0, 1, 2)}, refill=refill) for refill in (0, 4))
    assert metrics(after)["refill/groups"] > 0
    assert metrics(after)["reward/r/mean"] == metrics(before)["reward/r/mean"]
    assert metrics(after)["reward/zero_std_groups"] < metrics(before)["reward/zero_std_groups"]
    assert not any(name.startswith("refill/") for name in metrics(before))


def test_a_reward_that_is_only_watched_has_no_say(tmp_path: Path) -> None:
    rewards = {"r": brightness, "watched": Deaf(*range(ROWS))}
    (outcome,) = epoch(tmp_path, rewards, {"watched": {"weight": 0.0}}, refill=2)
    assert metrics(outcome)["refill/groups"] == 0


def test_one_sample_alone_is_a_group_that_teaches(tmp_path: Path) -> None:
    (outcome,) = epoch(tmp_path, {"r": brightness}, refill=2, group=1)
    assert metrics(outcome)["refill/groups"] == 0


def test_a_group_that_no_reward_applies_to_is_replaced(tmp_path: Path) -> None:
    def some(batch: Sequence[Sample]) -> list[Score]:
        return [None] * len(batch) if row_of(batch) == 0 else brightness(batch)

    (outcome,) = epoch(tmp_path, {"r": some}, refill=9)
    assert metrics(outcome)["refill/groups"] > 0
    assert all(group.row != 0 for group in held([outcome]).values())


# --- the filter of DAPO ----------------------------------------------------------------------------------------------


def of_one_round(round_: Mapping[str, Sequence[float]]) -> tuple[Scored, torch.Tensor]:
    values = torch.tensor(round_["metric"], dtype=torch.float64)
    return Scored({"r": values}, {"r": torch.zeros(len(values), dtype=torch.bool)}, {}, ()), torch.tensor(
        round_["groups"]
    )


@each("refill", lambda case: case["name"].startswith("refill_"))
def test_the_same_groups_are_kept_as_by_dapos_filter(case: Case) -> None:
    rewards = [RewardEntry(name="r", label="r", spec=None)]
    given, kept = case["inputs"]["rounds"], case["outputs"]["kept"]
    for number, round_ in enumerate(given[: case["outputs"]["rounds_used"]]):
        ours = teach_nothing(rewards, *of_one_round(round_))
        theirs = {round_["groups"][place] for at, place in kept if at == number}
        if case["outputs"]["state"] != "error":
            assert set(round_["groups"]) - ours == theirs
        else:
            assert ours == set(round_["groups"])


def test_scores_that_differ_by_rounding_alone_are_equal() -> None:
    values = [0.1 + 0.2, 0.3, 0.3]
    assert len(set(values)) == 2
    rewards = [RewardEntry(name="r", label="r", spec=None)]
    assert teach_nothing(rewards, *of_one_round({"groups": [0, 0, 0], "metric": values})) == {0}
