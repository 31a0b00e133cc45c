"""Rewards as the loop asks them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from flowfactory.contracts.reward import GroupReward, Reward, Score, Shared
from flowfactory.contracts.types import Row, Sample
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.tables import RewardEntry


def judge(backbones: dict[str, Any] | None = None, **targets: Any) -> Judge:
    entries = [RewardEntry(name=name, label=name, weight=1.0, spec=None, retry_pause=0.0) for name in targets]
    return Judge(entries, targets, {} if backbones is None else backbones)


def samples(groups: int = 2, group: int = 3) -> list[Sample]:
    return [
        Sample(Row(f"prompt {slot}"), torch.full((3, 2, 2), (slot * group + i) / 10), slot, i)
        for slot in range(groups)
        for i in range(group)
    ]


def brightness(batch: Sequence[Sample]) -> list[float]:
    return [float(s.media.mean()) for s in batch]


def test_a_bare_function_scores_in_order() -> None:
    scores = judge(brightness=brightness).score(samples())
    torch.testing.assert_close(scores["brightness"], torch.arange(6, dtype=torch.float64) / 10, atol=1e-6, rtol=0)


def test_a_group_reward_gets_each_group_whole() -> None:
    seen: list[list[int]] = []

    class Rank(GroupReward):
        def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
            seen.append([s.slot for s in samples])
            return [s.replica / 2 for s in samples]

    assert judge(rank=Rank).score(samples())["rank"].tolist() == [0, 0.5, 1, 0, 0.5, 1]
    assert seen == [[0, 0, 0], [1, 1, 1]]


def test_none_means_does_not_apply() -> None:
    scores = judge(odd=lambda batch: [None if s.replica == 0 else 1 for s in batch]).score(samples(1))
    assert math.isnan(scores["odd"][0])
    assert scores["odd"][1:].tolist() == [1.0, 1.0]


def raising(batch: Sequence[Sample]) -> list[float]:
    raise ValueError("no model")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda batch: [1.0], r"reward 'bad' returned 1 scores for 6 samples"),
        (lambda batch: [math.nan] * 6, r"reward 'bad' returned nan, not a finite number, for prompt 'prompt 0'"),
        (lambda batch: [1.0, math.inf, 1, 1, 1, 1], r"returned inf"),
        (lambda batch: ["1.0"] * 6, r"returned '1.0', not a finite number"),
        (lambda batch: [torch.zeros(2)] * 6, r"not a finite number"),
        (raising, r"reward 'bad' failed: ValueError: no model"),
        (lambda batch: 3, r"reward 'bad' failed: TypeError"),
    ],
)
def test_a_failure_is_never_a_score(bad: Callable[[Sequence[Sample]], Any], said: str) -> None:
    with pytest.raises(RewardError, match=said):
        judge(bad=bad).score(samples())


def test_a_backbone_is_made_once_for_all_judges_and_entries() -> None:
    made = []

    class Backboned(Reward):
        def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
            self.backbone = shared("clip", lambda: made.append("clip") or object())

        def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
            return [1.0] * len(samples)

    backbones: dict[str, Any] = {}
    for one in (judge(backbones, a=Backboned, b=Backboned), judge(backbones, c=Backboned)):
        one.load(torch.device("cpu"), torch.float32)
    assert made == ["clip"]


@pytest.mark.parametrize("device", ["cuda:7", "cuda", "xpu:3", "mps"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_loaded(device: str) -> None:
    if torch.accelerator.is_available() and torch.device(device).type == torch.accelerator.current_accelerator().type:  # type: ignore[union-attr]
        device = f"{torch.device(device).type}:64"
    entry = RewardEntry(name="a", label="a", spec=None, device=device)
    with pytest.raises(RewardError, match=rf"reward 'a' is to compute on `{device}`, which is not here .*`cpu`"):
        Judge([entry], {"a": brightness}, {}).reach()
    Judge([RewardEntry(name="a", label="a", spec=None, device="cpu")], {"a": brightness}, {}).reach()


def test_what_a_reward_needs_from_elsewhere_is_asked_for_in_words() -> None:
    class Served(Reward):
        def reach(self) -> None:
            raise ConnectionError("nobody listens")

        def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
            return [1.0] * len(samples)

    with pytest.raises(RewardError, match="reward 'served' cannot be reached: ConnectionError: nobody listens"):
        judge(served=Served).reach()


def test_a_session_tells_the_mean_so_far() -> None:
    with judge(brightness=brightness, never=lambda batch: [None] * len(batch)).session(
        {"": 2}, overlap=False
    ) as session:
        assert session.means == {}
        session.submit(samples()[:3])
        assert session.means == {"brightness": pytest.approx(0.1)}
        session.submit(samples()[3:])
        assert session.means == {"brightness": pytest.approx(0.25)}
        session.finish()
