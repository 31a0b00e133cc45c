"""Rewards that score some sources only: they are asked about no other sample, which learns as without them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from epochs import GROUP, PROMPTS, brightness, by_slot, epoch, made_up, metrics
from flowfactory.contracts.reward import GroupReward, Score
from flowfactory.contracts.types import Row, Sample
from flowfactory.metrics.scores import source_metrics
from flowfactory.rewards.advantages import advantages
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.sampling.chains import Chains
from flowfactory.sampling.source import Collected, group_counts
from flowfactory.spec.tables import RewardEntry

NAN = math.nan
OURS: Mapping[str, Any] = {"sources": ("a",), "on_error": "drop-group"}
SHARES = {"a": 1, "b": 2}
"""Of six prompts two are from `a`, whose rows are 0 to 3, and four from `b`, whose rows are 4 to 7."""


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chains, "sample", made_up)


def sample(source: str, slot: int, replica: int = 0) -> Sample:
    return Sample(Row("x", source=source), torch.full((3, 2, 2), slot / 10 + replica / 100), slot, replica)


def judge(targets: Mapping[str, Any], keys: Mapping[str, Mapping[str, Any]]) -> Judge:
    entries = [RewardEntry(name=n, label=n, spec=None, retry_pause=0.0, **keys.get(n, {})) for n in targets]
    return Judge(entries, targets, {})


@pytest.mark.parametrize("overlap", [False, True])
def test_samples_of_other_sources_are_not_asked_about(overlap: bool) -> None:
    asked: list[str] = []

    def ours(batch: Sequence[Sample]) -> list[Score]:
        asked.extend(one.row.source for one in batch)
        return brightness(batch)

    whole = [sample(source, slot) for slot, source in enumerate("abbaca")]
    with judge({"r": ours, "all": brightness}, {"r": {"sources": ("a", "c")}}).session(
        Counter("abbaca"), overlap
    ) as session:
        session.submit(whole[:4])  # several prompts at once, as evaluations have them
        session.submit(whole[4:])
        scored = session.finish()
    assert sorted(asked) == ["a", "a", "a", "c"]
    known = scored.values["all"]
    wanted = torch.tensor([True, False, False, True, True, True])
    assert torch.equal(scored.values["r"].nan_to_num(-1), torch.where(wanted, known, -1.0))
    assert not any(column.any() for column in scored.failed.values())


def test_what_fails_fails_for_its_own_samples_only() -> None:
    def fails(batch: Sequence[Sample]) -> list[Score]:
        raise RuntimeError("away")

    ours = judge({"r": fails}, {"r": {**OURS, "max_dropped": 1.0}})
    with ours.session({"a": 2, "b": 2}, overlap=False) as session:
        session.submit([sample(source, slot) for slot, source in enumerate("baab")])
        scored = session.finish()
    assert scored.failed["r"].tolist() == [False, True, True, False]
    assert scored.values["r"].isnan().all()
    assert [failure.sample.slot for failure in scored.failures] == [1]


@pytest.mark.parametrize(("most", "ends"), [(0.5, False), (0.49, True)])
@pytest.mark.parametrize("world", [1, 2])
def test_max_dropped_is_a_share_of_the_groups_it_scores(tmp_path: Path, most: float, ends: bool, world: int) -> None:
    def once(batch: Sequence[Sample]) -> list[Score]:
        if batch[0].slot == min(mine):
            raise RuntimeError("away")
        return brightness(batch)

    clean = epoch(tmp_path, {"r": brightness, "all": brightness}, {"r": OURS}, shares=SHARES)[0]
    assert isinstance(clean, Collected)
    mine = {member.group.slot for member in clean.members if member.group.row < 4}
    assert len(mine) == 2
    outcomes = epoch(
        tmp_path, {"r": once, "all": brightness}, {"r": {**OURS, "max_dropped": most}}, world=world, shares=SHARES
    )
    if ends:
        assert all(isinstance(outcome, RewardError) for outcome in outcomes)
        assert any("no scores for 1 of 2 groups" in str(outcome) for outcome in outcomes)
        return
    found = by_slot(outcomes)
    assert all(math.isnan(advantage) for advantage in found.pop(min(mine)))
    assert found == {slot: own for slot, own in by_slot([clean]).items() if slot != min(mine)}
    assert metrics(outcomes[0])["reward/r/failed_groups"] == 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_groups_of_other_sources_learn_as_without_it(tmp_path: Path, world: int) -> None:
    def dark(batch: Sequence[Sample]) -> list[Score]:
        return [-3.0 * float(s.media.double().mean()) ** 2 for s in batch]

    with_it = by_slot(epoch(tmp_path, {"r": brightness, "all": dark}, {"r": OURS}, world=world, shares=SHARES))
    without = by_slot(epoch(tmp_path, {"all": dark}, shares=SHARES))
    outcome = epoch(tmp_path, {"all": dark}, shares=SHARES)[0]
    assert isinstance(outcome, Collected)
    rows = {member.group.slot: member.group.row for member in outcome.members}
    assert {slot for slot in rows if with_it[slot] == without[slot]} == {slot for slot, row in rows.items() if row >= 4}
    assert not any(math.isnan(advantage) for own in with_it.values() for advantage in own)


@pytest.mark.parametrize("world", [1, 2])
def test_what_each_source_gave_is_told(tmp_path: Path, world: int) -> None:
    outcomes = epoch(tmp_path, {"r": brightness, "all": brightness}, {"r": OURS}, world=world, shares=SHARES)
    told = metrics(outcomes[0])
    assert (told["source/a/groups"], told["source/b/groups"]) == (2, 4)
    assert told["source/a/r/mean"] == told["reward/r/mean"] == told["source/a/all/mean"]
    assert "source/b/r/mean" not in told
    both = (2 * told["source/a/all/mean"] + 4 * told["source/b/all/mean"]) / PROMPTS
    assert told["reward/all/mean"] == pytest.approx(both)
    assert told["reward/r/zero_std_groups"] == 0


def test_without_sources_nothing_more_is_told(tmp_path: Path) -> None:
    assert not any(name.startswith("source/") for name in metrics(epoch(tmp_path, {"r": brightness})[0]))
    assert source_metrics({"r": torch.tensor([1.0])}, [""]) == group_counts({"": 3}) == {}


@pytest.mark.parametrize("world", [1, 2])
def test_a_group_is_refilled_from_its_own_source(tmp_path: Path, world: int) -> None:
    flat = epoch(tmp_path, {"r": lambda batch: [1.0] * len(batch)}, world=world, refill=3, shares=SHARES)
    assert metrics(flat[0])["refill/groups"] == 3 * PROMPTS
    rows = [m.group.row for outcome in flat if isinstance(outcome, Collected) for m in outcome.members]
    assert Counter(row < 4 for row in rows) == {True: 2 * GROUP, False: 4 * GROUP}


@pytest.mark.parametrize("aggregate", ["sum", "gdpo"])
@pytest.mark.parametrize("std", ["group", "global"])
def test_rewards_of_different_sources_do_not_bias_each_other(aggregate: str, std: str) -> None:
    """Two rewards of one spread, each for one group, compare as one reward for both, wherever their scales begin."""
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    one = torch.tensor([0.1, 0.4, 0.7, 0.2, 0.3, 0.9], dtype=torch.float64)
    levelled = one - torch.tensor([0.4, 0.4, 0.4, 7 / 15, 7 / 15, 7 / 15], dtype=torch.float64)
    left = torch.where(groups == 0, one + 100.0, NAN)
    right = torch.where(groups == 1, one - 5.0, NAN)
    apart = advantages({"l": left, "r": right}, {"l": 1.0, "r": 1.0}, groups, aggregate, std)
    together = advantages({"x": levelled}, {"x": 1.0}, groups, aggregate, std)
    for group in (0, 1):
        assert apart[groups == group].sum() == pytest.approx(0.0, abs=1e-9)
    if (aggregate, std) != ("gdpo", "global"):  # there each reward has a divisor of its own
        torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-12)
    assert apart.isfinite().all()


def test_a_group_reward_gets_its_whole_groups(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Rank(GroupReward):
        def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
            sizes.append(len(samples))
            assert {one.row.source for one in samples} == {"a"}
            return brightness(samples)

    epoch(tmp_path, {"rank": Rank, "all": brightness}, {"rank": OURS}, shares=SHARES)
    assert sizes == [GROUP, GROUP]
