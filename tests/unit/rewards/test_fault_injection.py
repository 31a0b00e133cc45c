"""An epoch whose reward fails in every way there is: no advantage is altered by it, and the metrics tell.

Sampling is replaced by made-up media; the rest is the code of a run. Two processes are two threads that really exchange
what they gather.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flowfactory.cli.ui import Phase
from flowfactory.contracts.reward import Score
from flowfactory.contracts.specs import Needs
from flowfactory.contracts.types import Rollout, Row, Sample
from flowfactory.rewards.advantages import Scores, advantages
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.sampling import rollouts
from flowfactory.sampling.rollouts import Rollouts
from flowfactory.sampling.source import Collected, Member
from flowfactory.spec.tables import RewardEntry
from torch import Tensor

PROMPTS, GROUP = 6, 3
SLOTS = {"first": 0, "middle": 2, "last": PROMPTS - 1}
TIMEOUT = 0.4


# --- ways to fail ----------------------------------------------------------------------------------------------------


def brightness(batch: Sequence[Sample]) -> list[Score]:
    return [float(s.media.double().mean()) for s in batch]


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


# --- a run without a model -------------------------------------------------------------------------------------------


class Exchange:
    """What the threads of one run gather."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier, self.board = world, threading.Barrier(world, timeout=30), dict[int, Any]()

    def all(self, rank: int, value: Any) -> list[Any]:
        self.board[rank] = value
        self.barrier.wait()
        found = [self.board[r] for r in range(self.world)]
        self.barrier.wait()
        return found


class Threads:
    """Stands for `flowfactory.processes.distributed.Processes`."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        self.rank, self.world, self.main, self.exchange = rank, exchange.world, rank == 0, exchange

    def gather(self, values: Tensor) -> Tensor:
        return torch.cat(self.exchange.all(self.rank, values))

    def gather_objects(self, values: list[Any]) -> list[Any]:
        return [one for found in self.exchange.all(self.rank, values) for one in found]

    def any(self, flag: bool) -> bool:
        return any(self.exchange.all(self.rank, flag))


@contextmanager
def nothing(*_: Any, **__: Any) -> Iterator[Phase]:
    yield Phase()


def level_of(member: Member) -> float:
    """How bright a sample is: different by prompt and replica."""
    return ((7 * member.group.row + 5 * member.replica**2) % 19) / 19


def made_up(sampler: Any, epoch: int, members: Sequence[Member], looked_at: bool) -> tuple[Rollout, list[Sample]]:
    """Media that differ by prompt and replica."""
    levels = [level_of(m) for m in members]
    media = torch.stack([torch.full((3, 4, 4), level, dtype=torch.float32) for level in levels])
    rows = sampler.conditions.rows
    samples = [Sample(rows[m.group.row], media[i], m.group.slot, m.replica) for i, m in enumerate(members)]
    return Rollout(torch.tensor([1.0, 0.5, 0.0]), (), {2: media[:, 0, 0, :1]}, {}), samples


def plain(scores: Scores, groups: Tensor) -> Tensor:
    """The trainers' own advantages."""
    return advantages(scores.values, scores.weights, groups, "sum", "group")


def over_all(scores: Scores, groups: Tensor) -> Tensor:
    """With one standard deviation for the whole epoch."""
    return advantages(scores.values, scores.weights, groups, "sum", "global")


def epoch(
    folder: Path,
    targets: Mapping[str, Any],
    keys: Mapping[str, Mapping[str, Any]] | None = None,
    overlap: bool = True,
    world: int = 1,
    compare: Callable[[Scores, Tensor], Tensor] = plain,
) -> list[Collected | BaseException]:
    """One epoch on each of `world` processes; `keys` are those of the rewards' tables."""
    given = keys or {}
    entries = tuple(
        RewardEntry(name=n, label=n, spec=None, **{"retry_pause": 0.0, "timeout": 30.0, **given.get(n, {})})
        for n in targets
    )
    spec = SimpleNamespace(
        run=SimpleNamespace(seed=3, epochs=1, save_samples=2),
        sampling=SimpleNamespace(prompts=PROMPTS, group=GROUP, micro_batch=4, overlap=overlap, refill=0),
        optimizer=SimpleNamespace(updates=1),
        rewards=entries,
    )
    exchange, outcomes = Exchange(world), list[Any]([None] * world)

    def one(rank: int) -> None:
        sampler = Rollouts(
            spec=spec,
            run=SimpleNamespace(folder=folder),
            events=SimpleNamespace(samples_scored=lambda **what: None),
            conditions=SimpleNamespace(rows=[Row(f"prompt {i}") for i in range(8)]),
            processes=Threads(rank, exchange),
            instruments=SimpleNamespace(display=SimpleNamespace(phase=nothing), clock=nothing),
            judge=Judge(entries, targets, {}),
            trainer=SimpleNamespace(advantages=compare, needs=Needs()),
            policy=None,
            scheduler=None,
        )
        try:
            outcomes[rank] = sampler.collect(1, SimpleNamespace(check=lambda _: None, asked=lambda _: False))  # type: ignore[arg-type]
        except RewardError as error:
            outcomes[rank] = error
        except BaseException as error:
            outcomes[rank] = error
            exchange.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def by_slot(outcomes: Sequence[Collected | BaseException]) -> dict[int, list[float]]:
    """Advantages of each group, over all processes."""
    found: dict[int, list[float]] = {}
    for outcome in outcomes:
        assert isinstance(outcome, Collected), outcome
        for member, advantage in zip(outcome.members, outcome.advantages.tolist(), strict=True):
            found.setdefault(member.group.slot, []).append(advantage)
    return found


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "sample", made_up)


def metrics(outcome: Collected | BaseException) -> dict[str, float]:
    assert isinstance(outcome, Collected)
    return outcome.metrics


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
