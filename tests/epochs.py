"""An epoch without a model: sampling is replaced by made-up media; the rest is the code of a run.

Several processes are as many threads, which really exchange what they gather.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from flowfactory.builtin import ODESpec
from flowfactory.cli.ui import Phase
from flowfactory.contracts.reward import Score
from flowfactory.contracts.specs import Needs
from flowfactory.contracts.types import Rollout, Row, Sample
from flowfactory.data.sources import Data, DataSource, Pool
from flowfactory.processes.context import Team
from flowfactory.processes.stop import StopRequest
from flowfactory.rewards.advantages import Scores, advantages
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.sampling.rollouts import Rollouts
from flowfactory.sampling.source import Collected, Member
from flowfactory.sampling.studio import Made, Studio
from flowfactory.spec.tables import RewardEntry
from torch import Tensor

SEED, ROWS, PROMPTS, GROUP = 3, 8, 6, 3
POOLS = (Pool(ROWS),)


def brightness(batch: Sequence[Sample]) -> list[Score]:
    return [float(s.media.double().mean()) for s in batch]


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

    sharded = accompanied = False

    def __init__(self, rank: int, exchange: Exchange) -> None:
        self.rank, self.world, self.main, self.exchange = rank, exchange.world, rank == 0, exchange
        self.team = Team(rank, exchange.world, True, None)

    def gather(self, values: Tensor) -> Tensor:
        return torch.cat(self.exchange.all(self.rank, values))

    def gather_objects(self, values: list[Any]) -> list[Any]:
        return [one for found in self.exchange.all(self.rank, values) for one in found]

    def led(self, value: Any) -> Any:
        return value

    def any(self, flag: bool) -> bool:
        return any(self.exchange.all(self.rank, flag))

    def told(self, flag: bool) -> bool:
        return flag


@contextmanager
def nothing(*_: Any, **__: Any) -> Iterator[Phase]:
    yield Phase()


def level_of(member: Member) -> float:
    """How bright a sample is: different by prompt and replica."""
    return ((7 * member.group.row + 5 * member.replica**2) % 19) / 19


def made_up(way: Any, epoch: int, members: Sequence[Member], decoded: bool) -> Made:
    """Media that differ by prompt and replica, of looks too, by what comes between."""
    levels = [level_of(m) for m in members]
    media = torch.stack([torch.full((3, 4, 4), level, dtype=torch.float32) for level in levels])
    rows = way.studio.conditions.rows
    columns = [
        [Sample(rows[m.group.row], media[i] * (1 - column / 8), m.group.slot, m.replica) for i, m in enumerate(members)]
        for column in range(way.columns)
    ]
    final = media[:, 0, 0, :1]
    return Made([Rollout(torch.tensor([1.0, 0.5, 0.0]), (), {2: final}, {})], columns, [final])


def plain(scores: Scores, groups: Tensor) -> Tensor:
    """The trainers' own advantages."""
    return advantages(scores.values, scores.weights, groups, "sum", "group")


def epoch(
    folder: Path,
    targets: Mapping[str, Any],
    keys: Mapping[str, Mapping[str, Any]] | None = None,
    overlap: bool = True,
    world: int = 1,
    compare: Callable[[Scores, Tensor], Tensor] = plain,
    refill: int = 0,
    group: int = GROUP,
    shares: Mapping[str, int] | None = None,
    needs: Needs | None = None,
    steps: int = 2,
    updates: int = 1,
) -> list[Collected | BaseException]:
    """One epoch on each of `world` processes; `keys` are those of the rewards' tables.

    Args:
        shares: of several sources, which have as many rows each.
    """
    given = keys or {}
    entries = tuple(
        RewardEntry(name=n, label=n, spec=None, **{"retry_pause": 0.0, "timeout": 30.0, **given.get(n, {})})
        for n in targets
    )
    each = [DataSource(name=name, prompts="x", share=share) for name, share in (shares or {}).items()]
    names = [name for name in shares or [""] for _ in range(ROWS // len(shares or [""]))]
    spec = SimpleNamespace(
        data=Data(source=tuple(each)) if each else Data(prompts="x"),
        run=SimpleNamespace(seed=SEED, epochs=1, save_samples=2),
        sampling=SimpleNamespace(
            prompts=PROMPTS, group=group, micro_batch=4, overlap=overlap, refill=refill, steps=steps
        ),
        scheduler=SimpleNamespace(spec=ODESpec()),
        optimizer=SimpleNamespace(updates=updates),
        rewards=entries,
    )
    exchange, outcomes = Exchange(world), list[Any]([None] * world)

    def one(rank: int) -> None:
        studio = Studio(
            spec=spec,
            run=SimpleNamespace(folder=folder),
            events=SimpleNamespace(samples_scored=lambda **what: None),
            conditions=SimpleNamespace(rows=[Row(f"prompt {i}", source=names[i]) for i in range(ROWS)]),
            processes=Threads(rank, exchange),
            instruments=SimpleNamespace(display=SimpleNamespace(phase=nothing), clock=nothing),
            judge=Judge(entries, targets, {}),
            trainer=SimpleNamespace(advantages=compare, needs=needs or Needs()),
            policy=None,
            scheduler=None,
        )
        try:
            outcomes[rank] = Rollouts(studio).collect(1, StopRequest())
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


def metrics(outcome: Collected | BaseException) -> dict[str, float]:
    assert isinstance(outcome, Collected)
    return outcome.metrics
