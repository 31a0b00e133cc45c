"""Rewards as the loop asks them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from flowfactory.contracts.key import Location
from flowfactory.contracts.reward import DifferentiableReward, GroupReward, Reward, Score, Shared
from flowfactory.contracts.types import Row, Sample
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.tables import RewardEntry
from flowfactory_plugin_clip import CLIPSpec
from flowfactory_plugin_clip.clip import CLIP
from flowfactory_plugin_clip.tiny import tiny_clip
from flowfactory_plugin_hps import HPSSpec
from flowfactory_plugin_hps.hps import HPS
from hub import Hub, Trouble
from torch import Tensor


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


@pytest.mark.parametrize("own", [None, "cuda"])
def test_where_a_reward_computes_has_its_number(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    one = Judge([RewardEntry(name="a", label="a", spec=None, device=own)], {"a": brightness}, {})
    one.load(torch.device("cuda"), torch.float32)
    assert one.rewards[0].device == torch.device("cuda:1")


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


# --- gradients -----------------------------------------------------------------------------------------------------


class Channel(DifferentiableReward):
    """The mean of one channel; notes how many it is asked about."""

    number = 0

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.asked: list[int] = []

    def value(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        self.asked.append(len(rows))
        return media[:, self.number].mean((1, 2))


class Other(Channel):
    number = 1


ROWS = [Row(f"prompt {i}") for i in range(5)]


def weighted(**weights: float) -> Judge:
    targets = {"one": Channel, "other": Other, "plain": brightness}
    entries = [
        RewardEntry(name=name, label=name, weight=weight, spec=None, micro_batch=2) for name, weight in weights.items()
    ]
    return Judge(entries, targets, {})


def test_values_are_the_weighted_sum_of_those_that_count() -> None:
    judge, media = weighted(one=1.0, other=-0.5, plain=0.0), torch.rand(5, 3, 2, 2, requires_grad=True)
    found = judge.value(media, ROWS)
    torch.testing.assert_close(found, media[:, 0].mean((1, 2)) - 0.5 * media[:, 1].mean((1, 2)))
    (slope,) = torch.autograd.grad(found.sum(), media)
    torch.testing.assert_close(slope[0, :, 0, 0], torch.tensor([0.25, -0.125, 0.0]))
    assert [asked.reward.asked for asked in judge.rewards[:2]] == [[2, 2, 1]] * 2  # type: ignore[attr-defined]


def test_scores_are_values_unless_it_says_otherwise() -> None:
    judge, media = weighted(one=1.0), torch.rand(5, 3, 2, 2)
    scores = judge.score([Sample(row, one, i, 0) for i, (row, one) in enumerate(zip(ROWS, media, strict=True))])["one"]
    torch.testing.assert_close(scores.float(), judge.value(media, ROWS))
    assert Channel(None).score([]) == []


class Blind(Reward):
    reads = frozenset({"prompt"})

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return [0.0 for _ in samples]


class Own(Channel):
    """With a `score` of its own, which may read pixels as bytes."""

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return [float(sample.media.numpy().mean()) for sample in samples]


def test_media_stay_where_all_who_read_them_take_them_from() -> None:
    device = torch.device("cuda", 0)
    assert not judge(brightness=brightness).scores_on(torch.device("cpu"))
    for rewards, places, offload, stay in (
        ([Channel, Other], [device, device], False, True),
        ([Channel, Other], [device, device], True, False),
        ([Channel, Other], [device, torch.device("cuda", 1)], False, False),
        ([Channel, Own], [device, device], False, False),
        ([Channel, Blind], [device, torch.device("cpu")], False, True),
        ([Blind], [device], False, False),
    ):
        entries = [RewardEntry(name=f"{i}", label=f"{i}", spec=None, offload=offload) for i in range(len(rewards))]
        made = Judge(entries, dict(zip("01", rewards, strict=False)), {})
        for asked, place in zip(made.rewards, places, strict=True):
            asked.device = place
        assert made.scores_on(device) == stay


def test_what_has_no_gradient_is_named() -> None:
    with pytest.raises(RewardError, match="reward 'plain' has no gradient: it is no `DifferentiableReward`"):
        weighted(one=1.0, plain=1.0).value(torch.rand(5, 3, 2, 2, requires_grad=True), ROWS)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda media, rows: media.detach().mean((1, 2, 3)), "reward 'one' has values without a gradient"),
        (lambda media, rows: media.mean(), r"reward 'one' has values \(\) of 2 samples"),
        (lambda media, rows: 1 / 0, "reward 'one' cannot be asked for its gradient: ZeroDivisionError"),
    ],
)
def test_a_fault_ends_it_in_words(monkeypatch: pytest.MonkeyPatch, value: Callable[..., Any], said: str) -> None:
    monkeypatch.setattr(Channel, "value", lambda self, media, rows: value(media, rows))
    with pytest.raises(RewardError, match=said):
        weighted(one=1.0).value(torch.rand(5, 3, 2, 2, requires_grad=True), ROWS)


@pytest.mark.parametrize(
    ("reward", "spec"),
    [
        (CLIP, CLIPSpec(path=Location("owner/closed"))),
        (HPS, HPSSpec(weights=Location("owner/closed"))),
    ],
)
def test_what_the_hub_does_not_give_a_reward_is_said(reward: Any, spec: Any, online: Hub) -> None:
    entry = RewardEntry(name="fine", label="fine", weight=1.0, spec=spec)
    page = f"{online.url}/owner/closed"
    words = f"reward 'fine' cannot be loaded: owner/closed is gated; accept its terms at {page} and log in"
    with pytest.raises(RewardError, match=words):
        Judge([entry], {"fine": reward}, {}).load(torch.device("cpu"), torch.float32)


def test_what_another_server_answers_a_reward_is_not_the_hub_s(online: Hub) -> None:
    online.troubles = {"": Trouble(page=b"<html>Who are you?</html>")}

    class Asks(Channel):
        def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
            httpx.get(f"{online.url}/rates").json()

    with pytest.raises(RewardError, match="reward 'fine' cannot be loaded: JSONDecodeError"):
        Judge([RewardEntry(name="fine", label="fine", spec=None)], {"fine": Asks}, {}).load(
            torch.device("cpu"), torch.float32
        )


@pytest.mark.parametrize("mute", ["a page"], indirect=True)
def test_what_is_here_of_a_reward_is_loaded_whatever_the_hub_says(
    online: Hub, mute: Callable[[], None], tmp_path: Path
) -> None:
    online.commit_folder(tiny_clip(tmp_path))
    entry = RewardEntry(name="clip", label="clip", spec=CLIPSpec(path=Location("owner/name")))
    sample = Sample(Row("a cat"), torch.zeros(3, 32, 32), 0, 0)
    scores = []
    for _ in range(2):
        made = Judge([entry], {"clip": CLIP}, {})
        made.load(torch.device("cpu"), torch.float32)
        scores.append(made.score([sample])["clip"])
        mute()
    assert torch.equal(*scores)
