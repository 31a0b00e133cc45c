"""One reward, asked: in pieces, in time, again when it fails."""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from flowfactory.contracts.reward import GroupReward, Score
from flowfactory.contracts.types import Row, Sample
from flowfactory.rewards.advantages import advantages
from flowfactory.rewards.asking import Asked, RewardError
from flowfactory.rewards.scoring import FunctionReward
from flowfactory.spec.tables import RewardEntry

Function = Callable[[Sequence[Sample]], Any]


def samples(groups: int = 1, group: int = 4) -> list[Sample]:
    return [
        Sample(Row(f"prompt {g}"), torch.full((3, 2, 2), i / 10), g, i) for g in range(groups) for i in range(group)
    ]


def asked(function: Function, **keys: Any) -> Asked:
    entry = RewardEntry(name="r", label="r", spec=None, **{"retry_pause": 0.0, **keys})
    return Asked(entry, FunctionReward(function))


class Flaky:
    """Raises as often as told, then scores 1."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self, batch: Sequence[Sample]) -> list[Score]:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError("try later")
        return [1.0] * len(batch)


def test_a_call_has_at_most_micro_batch_samples() -> None:
    sizes: list[int] = []
    asked(lambda batch: sizes.append(len(batch)) or [0.0] * len(batch), micro_batch=3).ask(samples(2))
    assert sizes == [3, 3, 2]


def test_a_group_reward_gets_whole_groups_whatever_micro_batch_says() -> None:
    slots: list[list[int]] = []

    class Rank(GroupReward):
        def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
            slots.append([s.slot for s in samples])
            return [0.0] * len(samples)

    entry = RewardEntry(name="r", label="r", spec=None, micro_batch=1)
    Asked(entry, Rank(None)).ask(samples(2))
    assert slots == [[0] * 4, [1] * 4]


def test_a_failed_call_is_made_again_and_then_counts() -> None:
    flaky = Flaky(2)
    answer = asked(flaky, retries=2).ask(samples())
    assert list(answer.scores) == [1.0] * 4
    assert not answer.failed
    assert len(answer.failures) == 2


@pytest.mark.parametrize(("on_error", "calls"), [("retry", 3), ("drop-group", 1), ("abort", 1)])
def test_only_retry_asks_again_and_a_failure_leaves_no_score(on_error: str, calls: int) -> None:
    flaky = Flaky(99)
    answer = asked(flaky, on_error=on_error, retries=2, micro_batch=2).ask(samples())
    assert answer.failed
    assert all(math.isnan(score) for score in answer.scores)
    assert len(answer.scores) == 4
    assert flaky.calls == len(answer.failures) == calls
    assert answer.failures[-1] == "reward 'r' failed: OSError: try later"


def test_the_public_error_of_rewards_is_a_failure_like_any_other() -> None:
    def absent(batch: Sequence[Sample]) -> Sequence[Score]:
        raise RewardError("nobody is there")

    answer = asked(absent, on_error="drop-group").ask(samples())
    assert (answer.failed, answer.fatal) == (True, False)
    assert list(answer.failures) == ["reward 'r' failed: RewardError: nobody is there"]


def test_scores_may_be_anything_that_is_one_finite_number() -> None:
    given = [1, 2.5, torch.tensor(3.0), torch.tensor([4.0])]
    assert list(asked(lambda batch: given).ask(samples()).scores) == [1, 2.5, 3, 4]
    assert list(asked(lambda batch: (x for x in given)).ask(samples()).scores) == [1, 2.5, 3, 4]
    assert list(asked(lambda batch: torch.arange(4)).ask(samples()).scores) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "bad",
    [
        math.nan, math.inf, -math.inf, "1.0", b"1", [1.0], 1j, {}, torch.zeros(2), torch.tensor(math.nan), 10**400,
        True, np.bool_(False), torch.tensor(True),
    ],
)  # fmt: skip
def test_anything_else_is_a_failure(bad: Any) -> None:
    with pytest.raises(RewardError, match="not a finite number, for prompt 'prompt 0'"):
        asked(lambda batch: [0.0, bad, 0.0, 0.0]).call(samples())


@pytest.mark.parametrize("bad", [1e200, -1.1e100, torch.tensor(1e300, dtype=torch.float64)])
def test_scores_whose_spread_has_no_number_are_failures(bad: Any) -> None:
    with pytest.raises(
        RewardError, match=r"reward 'r' returned .*, too large to be compared .*, for prompt 'prompt 0'"
    ):
        asked(lambda batch: [0.0, bad, 0.0, 0.0]).call(samples())
    values = torch.tensor([1e100, -1e100, 0.0], dtype=torch.float64)
    for std in ("group", "global"):
        made = advantages({"r": values}, {"r": 1e6}, torch.zeros(3), "sum", std)
        assert made.sign().tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    ("bad", "kind"), [({0.1: 1, 0.2: 2, 0.3: 3, 0.4: 4}, "dict"), ({0.1, 0.2, 0.3, 0.4}, "set"), ("1234", "str")]
)
def test_what_has_no_order_or_is_text_is_no_answer(bad: Any, kind: str) -> None:
    with pytest.raises(RewardError, match=f"reward 'r' returned a {kind}, not a sequence of scores .*'prompt 0'"):
        asked(lambda batch: bad).call(samples())


def test_an_answer_without_end_is_a_failure() -> None:
    with pytest.raises(RewardError, match="returned more than 4 scores for 4 samples"):
        asked(lambda batch: itertools.repeat(1.0)).call(samples())


def test_a_value_that_cannot_be_shown_is_a_failure_in_words() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError

    with pytest.raises(RewardError, match="returned a Odd, not a finite number"):
        asked(lambda batch: [Odd()] * 4).call(samples())


def test_a_reward_has_copies_of_everything() -> None:
    ours = [attrs.evolve(s, row=Row(s.row.prompt, metadata={"tags": ["a"]})) for s in samples()]
    before = [s.media.clone() for s in ours]

    def meddles(batch: Any) -> list[Score]:
        for s in batch:
            s.media.fill_(0)
            s.row.metadata["tags"].append("b")
            s.row.metadata["more"] = 1
        batch.clear()
        return [0.0] * 4

    asked(meddles).call(ours)
    assert all(torch.equal(s.media, b) for s, b in zip(ours, before, strict=True))
    assert [s.row.metadata for s in ours] == [{"tags": ["a"]}] * 4


def test_changing_how_torch_computes_is_fatal_and_never_asked_again() -> None:
    calls = []

    def doubles(batch: Sequence[Sample]) -> list[Score]:
        calls.append(1)
        torch.set_default_dtype(torch.float64)
        return [0.0] * len(batch)

    answer = asked(doubles, retries=2).ask(samples())
    assert (answer.failed, answer.fatal, len(calls)) == (True, True, 1)
    assert "reward 'r' changed torch's default dtype" in answer.failures[0]
    assert torch.get_default_dtype() == torch.float32


def test_a_thread_that_cannot_be_had_is_a_failure_and_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = asked(lambda batch: [1.0] * len(batch), timeout=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no more threads")))
        for _ in range(2):
            with pytest.raises(RewardError, match="reward 'r' cannot be asked: RuntimeError: no more threads"):
                reward.call(samples())
    assert reward.call(samples()) == [1.0] * 4


def test_behind_a_call_that_hangs_all_wait_together_not_each() -> None:
    released = threading.Event()
    reward = asked(lambda batch: released.wait(20) and [0.0] * len(batch), timeout=0.3, retries=2)
    start = time.perf_counter()
    for _ in range(10):
        assert reward.ask(samples()).failed
    assert time.perf_counter() - start < 3  # twice 0.3 s; each for itself it were 9
    released.set()


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_reward_that_hangs_is_given_up_soon_however_it_is_asked(workers: int) -> None:
    """One call after another, as where nothing is sampled meanwhile, with places that nobody has."""
    released, calls = threading.Event(), list[int]()
    reward = asked(
        lambda batch: calls.append(1) or (released.wait(20) and [0.0] * len(batch)), timeout=0.2, workers=workers
    )
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(10):
            assert reward.ask(samples()).failed
        assert time.perf_counter() - start < 2  # each for itself it were 6
        assert len(calls) == min(workers, 2)
        calls.clear()
        released.set()
        time.sleep(0.1)
        assert reward.ask(samples()).failed == (workers > 1), "places that are free again wait for the next round"
        reward.begin()
        assert not reward.ask(samples()).failed
        released.clear()
        calls.clear()


def test_one_worker_that_hangs_does_not_shorten_the_wait_for_the_others() -> None:
    released, first = threading.Event(), threading.Lock()

    def one_hangs(batch: Sequence[Sample]) -> list[Score]:
        if first.acquire(blocking=False):
            released.wait(20)
        time.sleep(0.2)
        return [0.0] * len(batch)

    reward = asked(one_hangs, timeout=0.4, workers=2)
    with pytest.raises(RewardError, match="took longer"):
        reward.call(samples())
    time.sleep(0.5)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(reward.call, [samples()] * 2)) == [[0.0] * 4] * 2
    released.set()


def test_asking_ends_soon_when_nobody_waits_any_more() -> None:
    released, over = threading.Event(), threading.Event()
    slow = asked(lambda batch: released.wait(20) and [0.0] * len(batch), timeout=15.0)
    pausing = asked(Flaky(9), retry_pause=15.0)
    threading.Timer(0.2, over.set).start()
    for reward in (slow, pausing, slow):  # hanging, pausing, waiting for a place
        start = time.perf_counter()
        answer = reward.ask(samples(), over.is_set)
        assert time.perf_counter() - start < 3
        assert answer.failed
    released.set()


@pytest.mark.parametrize("bad", [None, 3, 1.0])
def test_an_answer_that_is_no_list_is_a_failure(bad: Any) -> None:
    with pytest.raises(RewardError, match="TypeError"):
        asked(lambda batch: bad).call(samples())


def test_a_reward_cannot_end_the_process() -> None:
    with pytest.raises(RewardError, match="SystemExit"):
        asked(lambda batch: sys.exit(3)).call(samples())


def test_gradients_are_off() -> None:
    assert asked(lambda batch: [float(torch.is_grad_enabled())] * len(batch)).call(samples()) == [0.0] * 4


def test_a_call_that_takes_too_long_fails_in_time() -> None:
    released = threading.Event()
    slow = asked(lambda batch: released.wait(10) and [0.0] * len(batch), timeout=0.05)
    start = time.perf_counter()
    with pytest.raises(RewardError, match=r"reward 'r' took longer than 0.05 s"):
        slow.call(samples())
    assert time.perf_counter() - start < 5
    released.set()


def test_a_hanging_call_keeps_its_place_until_it_returns() -> None:
    released, running, most, lock = threading.Event(), 0, 0, threading.Lock()

    def hangs(batch: Sequence[Sample]) -> list[Score]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        released.wait(10)
        with lock:
            running -= 1
        return [1.0] * len(batch)

    reward = asked(hangs, timeout=0.05, workers=1)
    with pytest.raises(RewardError, match="took longer"):
        reward.call(samples())
    with pytest.raises(RewardError, match="still busy with calls that timed out"):
        reward.call(samples())
    released.set()
    while running:
        time.sleep(0.01)
    assert reward.call(samples()) == [1.0] * 4
    assert most == 1
