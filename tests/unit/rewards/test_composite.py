"""Scores that say what they are made of: only the total counts, the parts are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from flowfactory.contracts.types import Rollout, Row, Sample
from flowfactory.metrics.scores import score_metrics
from flowfactory.processes.distributed import Processes
from flowfactory.rewards.asking import Composite, RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.rewards.session import Scored, all_parts
from flowfactory.sampling.epochs import Group
from flowfactory.sampling.rounds import Round
from flowfactory.sampling.source import Member
from flowfactory.spec.tables import RewardEntry


def samples(*levels: float) -> list[Sample]:
    return [Sample(Row("x"), torch.full((3, 2, 2), level), i // 2, i % 2) for i, level in enumerate(levels)]


def graded(batch: Sequence[Sample]) -> list[Any]:
    """A plain number where it is dark, and a part that does not always apply."""
    levels = [float(sample.media.mean()) for sample in batch]
    return [x if x < 0.25 else Composite(x, {"half": x / 2, "late": None if x < 0.6 else 1.0}) for x in levels]


def scored(target: Any, *levels: float, overlap: bool = True) -> Scored:
    entry = RewardEntry(name="r", label="grades", spec=None, on_error="drop-group", max_dropped=1.0, micro_batch=1)
    with Judge([entry], {"r": target}, {}).session({"": len(levels)}, overlap) as session:
        for sample in samples(*levels):
            session.submit([sample])
        return session.finish()


def listed(column: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in column.tolist()]


@pytest.mark.parametrize("overlap", [True, False])
def test_totals_count_and_parts_are_columns_of_their_own(overlap: bool) -> None:
    found = scored(graded, 0.125, 0.5, 0.75, overlap=overlap)
    assert found.values["grades"].tolist() == [0.125, 0.5, 0.75]
    assert {name: listed(column) for name, column in found.parts.items()} == {
        "grades/half": [None, 0.25, 0.375],
        "grades/late": [None, None, 1.0],
    }


def test_words_are_kept_with_their_samples_and_have_an_end() -> None:
    def spoken(batch: Sequence[Sample]) -> list[Any]:
        levels = [float(sample.media.mean()) for sample in batch]
        return [x if x < 0.25 else Composite(x, {}, {"why": f"{x} \x1b[2J" + "y" * 5000}) for x in levels]

    found = scored(spoken, 0.125, 0.5)
    assert found.words[0] == {}
    (text,) = found.words[1].values()
    assert text.startswith("0.5 \\x1b[2Jyyy")
    assert len(text) < 2100


def test_a_failure_has_no_parts() -> None:
    def late(batch: Sequence[Sample]) -> list[Any]:
        if float(batch[0].media.mean()) > 0.6:
            raise ValueError("too bright")
        return graded(batch)

    found = scored(late, 0.5, 0.75)
    assert listed(found.parts["grades/half"]) == [0.25, None]
    assert found.failed["grades"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("score", "why"),
    [
        (Composite(math.nan, {}), "not a finite number"),
        (Composite(1.0, {"a": math.inf}), "reward 'grades/a' returned inf"),
        (Composite(1.0, {"a": "1"}), "reward 'grades/a' returned '1'"),  # type: ignore[dict-item]
        (Composite(1.0, {"a/b": 1.0}), "names a part 'a/b'; expected a name such as labels have"),
        (Composite(1.0, {"": 1.0}), "names a part ''"),
        (Composite(1.0, {3: 1.0}), "names a part 3"),  # type: ignore[dict-item]
        (Composite(1.0, {}, {"a/b": "x"}), "names a part 'a/b'"),
    ],
)
def test_a_part_is_held_to_what_scores_are(score: Composite, why: str) -> None:
    entry = RewardEntry(name="r", label="grades", spec=None, retries=0)
    with pytest.raises(RewardError, match=why):
        Judge([entry], {"r": lambda batch: [score]}, {}).score(samples(1.0))


def test_processes_agree_about_the_parts() -> None:
    class Two:
        """Another process has seen another part."""

        def gather_objects(self, own: list[Any]) -> list[Any]:
            return [*own, ["grades/other"]]

    found = scored(graded, 0.75)
    two: Any = Two()
    assert all_parts(two, found) == ["grades/half", "grades/late", "grades/other"]
    assert listed(found.part("grades/other")) == [None]
    assert all_parts(Processes("fp32"), found) == ["grades/half", "grades/late"]


def test_metrics_of_parts_leave_out_where_they_do_not_apply() -> None:
    found = scored(graded, 0.125, 0.5, 0.75)
    assert score_metrics("reward", found.parts) == {
        "reward/grades/half/mean": 0.3125,
        "reward/grades/half/std": 0.0625,
        "reward/grades/late/mean": 1.0,
        "reward/grades/late/std": 0.0,
    }


def latents(count: int) -> Rollout:
    return Rollout(torch.tensor([1.0, 0.0]), (), {1: torch.zeros(count, 1)}, {})


def test_parts_of_replaced_groups_are_replaced() -> None:
    old = scored(graded, 0.5, 0.5, 0.125, 0.125)
    new = scored(graded, 0.75, 0.75)
    assert set(old.parts) == {"grades/half", "grades/late"}
    members = [Member(Group(slot, 0, 0), replica) for slot in (0, 1) for replica in (0, 1)]
    first = Round(members, [latents(4)], attrs.evolve(old, parts={"grades/half": old.parts["grades/half"]}), [], {}, [])
    fresh = Round(members[2:], [latents(2)], new, [], {}, [])
    made = first.replaced(fresh, 1).scored
    assert listed(made.parts["grades/half"]) == [0.25, 0.25, 0.375, 0.375]
    assert listed(made.parts["grades/late"]) == [None, None, 1.0, 1.0]
