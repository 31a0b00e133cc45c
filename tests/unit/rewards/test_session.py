"""Rounds of scoring: overlapped or not, the scores are the same; idle rewards leave the device."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from flowfactory.contracts.reward import GroupReward, Reward, Score, Shared
from flowfactory.contracts.types import Row, Sample
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.tables import RewardEntry

CPU = torch.device("cpu")


def judge(keys: dict[str, dict[str, Any]] | None = None, **targets: Any) -> Judge:
    """A judge of rewards by label; `keys` are further keys of their tables."""
    given = keys or {}
    entries = [
        RewardEntry(name=name, label=name, spec=None, **{"retry_pause": 0.0, **given.get(name, {})}) for name in targets
    ]
    return Judge(entries, targets, {})


def group(slot: int, size: int = 3) -> list[Sample]:
    return [Sample(Row(f"prompt {slot}"), torch.full((3, 2, 2), (slot * size + i) / 100), slot, i) for i in range(size)]


def brightness(batch: Sequence[Sample]) -> list[Score]:
    return [float(s.media.mean()) for s in batch]


def uneven(batch: Sequence[Sample]) -> list[Score]:
    time.sleep(random.random() * 0.01)
    return [None if s.replica == 1 else float(s.media.sum()) for s in batch]


class Rank(GroupReward):
    """The place of each sample by brightness."""

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        time.sleep(random.random() * 0.01)
        return [float(sorted(brightness(samples)).index(b)) for b in brightness(samples)]  # type: ignore[type-var]


@pytest.mark.parametrize("workers", [1, 4])
def test_overlapped_scores_are_the_synchronous_ones_in_the_same_order(workers: int) -> None:
    found = []
    for overlap in (False, True):
        ours = judge({"uneven": {"workers": workers}, "rank": {"workers": workers}}, uneven=uneven, rank=Rank)
        with ours.session({"": 12}, overlap) as session:
            for slot in range(12):
                session.submit(group(slot))
            found.append(session.finish())
    for label in ("uneven", "rank"):
        assert torch.equal(found[0].values[label].nan_to_num(-1), found[1].values[label].nan_to_num(-1))
        assert len(found[0].values[label]) == 36
    assert found[0].values["uneven"][1].isnan()


def test_scoring_takes_no_longer_than_sampling_when_it_overlaps() -> None:
    pause, groups = 0.04, 10

    def slow(batch: Sequence[Sample]) -> list[Score]:
        time.sleep(pause)
        return brightness(batch)

    seconds = {}
    for overlap in (False, True):
        with judge(slow=slow).session({"": groups}, overlap) as session:
            start = time.perf_counter()
            for slot in range(groups):
                time.sleep(pause)  # stands for sampling
                session.submit(group(slot))
            session.finish()
            seconds[overlap] = time.perf_counter() - start
    assert seconds[True] / seconds[False] < 0.75  # 0.55 where nothing else runs: (groups + 1) / (2 groups)


def test_workers_ask_side_by_side() -> None:
    met = threading.Barrier(3, timeout=10)

    def waits(batch: Sequence[Sample]) -> list[Score]:
        met.wait()
        return brightness(batch)

    with judge({"waits": {"workers": 3}}, waits=waits).session({"": 3}) as session:
        for slot in range(3):
            session.submit(group(slot))
        assert not session.finish().failures


def test_media_are_gone_once_they_are_scored() -> None:
    with judge(brightness=brightness).session({"": 1}) as session:
        samples = group(0)
        media = [weakref.ref(s.media) for s in samples]
        session.submit(samples)
        del samples
        session.finish()
        deadline = time.monotonic() + 10
        while any(one() is not None for one in media) and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread that scored them lets go of them a moment later
            gc.collect()
        assert all(one() is None for one in media)


def failing(*slots: int) -> Any:
    def fails(batch: Sequence[Sample]) -> list[Score]:
        if batch[0].slot in slots:
            raise OSError(f"slot {batch[0].slot}")
        return brightness(batch)

    return fails


@pytest.mark.parametrize("overlap", [False, True])
def test_a_failure_is_told_with_its_sample_and_leaves_other_rewards_alone(overlap: bool) -> None:
    ours = judge({"bad": {"retries": 1}}, bad=failing(1), good=brightness)
    with ours.session({"": 4}, overlap) as session:
        for slot in range(4):
            session.submit(group(slot))
        scored = session.finish()
    assert session.aborting == "the round is over"
    assert scored.failed["bad"].tolist() == [False] * 3 + [True] * 3 + [False] * 6
    assert scored.values["bad"].isnan().tolist() == scored.failed["bad"].tolist()
    assert not scored.failed["good"].any()
    assert not scored.values["good"].isnan().any()
    assert scored.calls == {"bad": 2, "good": 0}
    (failure,) = scored.failures
    assert (failure.label, failure.sample.row.prompt) == ("bad", "prompt 1")
    assert failure.why == "reward 'bad' failed: OSError: slot 1"


@pytest.mark.parametrize("overlap", [False, True])
def test_abort_stops_asking(overlap: bool) -> None:
    asked: list[int] = []

    def counts(batch: Sequence[Sample]) -> list[Score]:
        asked.append(batch[0].slot)
        return failing(1)(batch)

    with judge({"counts": {"on_error": "abort"}}, counts=counts).session({"": 9}, overlap) as session:
        for slot in range(9):
            session.submit(group(slot))
        session.finish()
        assert session.aborting == "reward 'counts' failed: OSError: slot 1"
    assert asked == [0, 1]


def test_losing_too_many_groups_stops_asking_before_all_are_lost() -> None:
    ours = judge({"bad": {"on_error": "drop-group", "max_dropped": 0.25}}, bad=failing(*range(8)))
    with ours.session({"": 8}, overlap=False) as session:
        for slot in range(8):
            session.submit(group(slot))
        scored = session.finish()
        assert session.aborting == (
            "reward 'bad' has no scores for 3 of 8 groups, and its `max_dropped` allows 25%: "
            "reward 'bad' failed: OSError: slot 2"
        )
    assert scored.failed["bad"].all()
    assert scored.calls == {"bad": 3}


class Placed(Reward):
    """Notes where it is, and what it was loaded with."""

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.loaded = (str(device), dtype)
        self.backbone = shared("net", object)
        self.places = [str(device)]

    def place(self, device: torch.device) -> None:
        self.places.append(str(device))

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        self.places.append("scores")
        return [0.0] * len(samples)


def test_each_reward_is_loaded_where_and_as_its_table_says() -> None:
    ours = judge({"b": {"device": "cuda:1", "dtype": "bf16"}, "c": {"dtype": "fp16"}}, a=Placed, b=Placed, c=Placed)
    ours.load(CPU, torch.float32)
    a, b, c = (asked.reward for asked in ours.rewards)
    assert isinstance(a, Placed)
    assert isinstance(b, Placed)
    assert isinstance(c, Placed)
    assert [r.loaded for r in (a, b, c)] == [("cpu", torch.float32), ("cuda:1", torch.bfloat16), ("cpu", torch.float16)]
    assert len({id(r.backbone) for r in (a, b, c)}) == 3


def test_an_offloaded_reward_is_on_its_device_only_while_it_scores() -> None:
    ours = judge({"a": {"device": "cuda:0", "offload": True}, "b": {"device": "cuda:0"}}, a=Placed, b=Placed)
    ours.load(CPU, torch.float32)
    for asked in ours.rewards:
        asked.device = CPU if not torch.cuda.is_available() else asked.device
        assert isinstance(asked.reward, Placed)
        asked.reward.places[:] = [place.replace("cuda:0", "device") for place in asked.reward.places]
    with ours.session({"": 1}, overlap=False) as session:
        session.submit(group(0))
    offloaded, resident = (asked.reward for asked in ours.rewards)
    assert isinstance(offloaded, Placed)
    assert isinstance(resident, Placed)
    assert offloaded.places[:2] == ["device", "cpu"]
    assert offloaded.places[-2:] == ["scores", "cpu"]
    assert resident.places[-1] == "scores"


def test_a_reward_that_cannot_be_loaded_is_named() -> None:
    class Broken(Reward):
        def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
            raise FileNotFoundError("no weights")

        def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
            return []

    with pytest.raises(RewardError, match="reward 'broken' cannot be loaded: FileNotFoundError: no weights"):
        judge(broken=Broken).load(CPU, torch.float32)


class Exits(Reward):
    """Leaves where it is told to."""

    where = "load"

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.leave("made")

    def leave(self, where: str) -> None:
        if self.where == where:
            sys.exit(0)

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.leave("loaded")

    def place(self, device: torch.device) -> None:
        self.leave("placed on cpu")

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        os._exit(0)


def begin(judge: Any, target: Any) -> None:
    ours = judge(leaving=target)
    ours.load(CPU, torch.float32)
    with ours.session({"": 1}):
        pass


@pytest.mark.parametrize("where", ["made", "loaded", "placed on cpu"])
def test_an_exit_is_a_failure_in_words(where: str) -> None:
    leaving = type("Leaving", (Exits,), {"where": where})
    with pytest.raises(RewardError, match=f"reward 'leaving' cannot be {where}: SystemExit: 0"):
        begin(judge, leaving)


@pytest.mark.parametrize("overlap", [False, True])
def test_leaving_the_process_while_scoring_is_a_failure(overlap: bool) -> None:
    with judge({"leaving": {"retries": 0}}, leaving=Exits).session({"": 9}, overlap) as session:
        session.submit(group(0))
        (failure,) = session.finish().failures
    assert failure.why == "reward 'leaving' failed: SystemExit: os._exit(0)"


def test_what_loading_changes_for_everybody_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    class Loads(Reward):
        def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
            torch.set_grad_enabled(False)
            os.environ["LOADED"] = "1"

        def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
            return [0.0] * len(samples)

    with caplog.at_level(logging.WARNING, "flowfactory"):
        judge(loads=Loads).load(CPU, torch.float32)
    assert torch.is_grad_enabled()
    assert "LOADED" not in os.environ
    assert "reward 'loads' changed whether gradients are recorded" in caplog.text
    assert "reward 'loads' changed the environment variable LOADED" in caplog.text


@pytest.mark.parametrize("overlap", [False, True])
def test_no_reward_sees_what_another_does_to_its_samples(overlap: bool) -> None:
    def blackens(batch: Sequence[Sample]) -> list[Score]:
        for s in batch:
            s.media.zero_()
        return [0.0] * len(batch)

    with judge(blackens=blackens, brightness=brightness).session({"": 2}, overlap) as session:
        for slot in range(2):
            session.submit(group(slot))
        scored = session.finish()
    assert scored.values["brightness"].tolist() == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04, 0.05])


@pytest.mark.parametrize("overlap", [False, True])
def test_a_stop_is_heard_while_a_reward_hangs(overlap: bool) -> None:
    released, stopped = threading.Event(), threading.Event()
    ours = judge(hangs=lambda batch: released.wait(30) and brightness(batch), good=brightness)
    threading.Timer(0.2, stopped.set).start()
    start = time.perf_counter()
    with ours.session({"": 2}, overlap, stopped.is_set) as session:
        for slot in range(2):
            session.submit(group(slot))
        scored = session.finish()
    assert time.perf_counter() - start < 4
    assert scored.failed["hangs"].all()
    assert scored.values["hangs"].isnan().all()
    released.set()


def test_nobody_waits_for_a_reward_that_hangs_once_another_has_ended_the_run() -> None:
    released = threading.Event()
    hanging = lambda batch: released.wait(30) and brightness(batch)  # noqa: E731
    with judge({"bad": {"on_error": "abort"}}, hanging=hanging, bad=failing(0)).session({"": 1}) as session:
        start = time.perf_counter()
        session.submit(group(0))
        session.finish()
        assert time.perf_counter() - start < 4
        assert session.aborting == "reward 'bad' failed: OSError: slot 0"
    released.set()


def test_whatever_goes_wrong_in_a_thread_that_asks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise MemoryError("all gone")

    ours = judge(good=brightness)
    monkeypatch.setattr(ours.rewards[0], "ask", broken)
    with ours.session({"": 1}) as session:
        session.submit(group(0))
        assert session.finish().failed["good"].all()
        assert session.aborting == "reward 'good' cannot be asked: MemoryError: all gone"


def test_one_of_a_prompt_is_no_group_unless_the_reward_says_so() -> None:
    class Alone(Rank):
        alone = True

    ours = judge(rank=Rank, alone=Alone, brightness=brightness)
    with ours.session({"": 1}, single=True) as session:
        session.submit(group(0, size=1))
        assert list(session.finish().values) == ["alone", "brightness"]
