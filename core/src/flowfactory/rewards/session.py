"""A round of scoring: samples go in while others are made, scores come out in order."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from queue import SimpleQueue
from threading import Condition, Thread

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.types import Sample
from flowfactory.errors import said
from flowfactory.processes.distributed import Processes
from flowfactory.rewards.asking import Answer, Asked, Composite, RewardError
from flowfactory.rewards.places import GLANCE, never
from flowfactory.spec.tables import RewardEntry

log = logging.getLogger("flowfactory")

CPU = torch.device("cpu")


@attrs.frozen(eq=False)
class Failure:
    """A reward has no scores for a group; `sample` is the group's first."""

    label: str
    why: str
    sample: Sample


@attrs.frozen(eq=False)
class Scored:
    """What the rewards said about `N` samples, in the order they were submitted.

    values: by label `(N,)` float64, NaN where a reward does not apply or failed. parts: of composite scores, by
        `label/part`.
    words: of each sample those that composite scores bring, by `label/name`.
    failed: by label `(N,)` bool. calls: by label, how many calls failed, those included that succeeded when repeated.
    failures: those that are left.
    """

    values: Mapping[str, Tensor]
    failed: Mapping[str, Tensor]
    calls: Mapping[str, int]
    failures: Sequence[Failure]
    parts: Mapping[str, Tensor] = attrs.field(factory=dict)
    words: Sequence[Mapping[str, str]] = ()

    def part(self, name: str) -> Tensor:
        """A part's column `(N,)`; NaN where nothing here has named it."""
        first = next(iter(self.values.values()))
        return self.parts.get(name, torch.full_like(first, math.nan))


def all_parts(processes: Processes, scored: Scored) -> Sequence[str]:
    """The parts that any process has seen, in one order on all."""
    return sorted({name for own in processes.gather_objects([list(scored.parts)]) for name in own})


def of_team(processes: Processes, scored: Scored) -> Scored:
    """What was said to who leads a team, for all of it; who asked keeps the failures and the words."""
    mine = scored.failures, scored.words
    led: Scored = processes.led(attrs.evolve(scored, failures=(), words=()))
    return attrs.evolve(led, failures=mine[0], words=mine[1])


class Session:
    """A round of scoring: groups go in, scores come out in the same order, however long each took.

    Every reward has `workers` threads of its own. It is asked about the same samples in the same pieces as without
    threads, so the scores are the same; about those of its own sources only.

    Args:
        groups: how many will be scored, over all processes, by their source.
    """

    def __init__(
        self,
        rewards: Sequence[Asked],
        groups: Mapping[str, int],
        overlap: bool,
        stopped: Callable[[], bool] = never,
    ) -> None:
        self._rewards, self._groups, self._stopped = rewards, groups, stopped
        self._units: list[list[str]] = []  # the sources of the samples of each
        self._answers: dict[tuple[int, int], Answer] = {}
        self._failures: dict[tuple[int, int], Failure] = {}
        self._lost = [set[int]() for _ in rewards]  # the slots of groups
        self._changed = Condition()
        self._aborting: str | None = None
        self._queues: list[SimpleQueue[tuple[int, Sequence[Sample]] | None]] = []
        self._threads: list[Thread] = []
        for asked in rewards:
            asked.begin()
        for number, asked in enumerate(rewards if overlap else ()):
            self._queues.append(SimpleQueue())
            name = f"score {asked.entry.label}"
            for _ in range(asked.entry.workers):
                self._threads.append(Thread(target=self._work, args=(number,), name=name, daemon=True))
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self.close()
            raise RewardError(f"the rewards cannot be asked: {said(error)}") from error

    @property
    def aborting(self) -> str | None:
        """Why the run must end: a reward failed whose `on_error` is `abort`, or failed for too many groups.

        What is not scored by then never will be.
        """
        return self._aborting

    @property
    def scored(self) -> int:
        """How many submitted units every reward has answered."""
        with self._changed:
            answered = Counter(index for _, index in self._answers)
        return sum(count == len(self._rewards) for count in answered.values())

    @property
    def means(self) -> dict[str, float]:
        """The mean of the scores so far, by label; labels without any are left out."""
        with self._changed:
            answers = dict(self._answers)
        means = {}
        for number, asked in enumerate(self._rewards):
            scores = [s for (n, _), answer in answers.items() if n == number for s in answer.scores if s == s]
            if scores:
                means[asked.entry.label] = math.fsum(scores) / len(scores)
        return means

    @property
    def failures(self) -> Sequence[Failure]:
        """What has no scores so far, by reward and then in the order of submission; of a group in pieces the first."""
        with self._changed:
            told = [self._failures[key] for key in sorted(self._failures)]
        return [*{(failure.label, failure.sample.slot): failure for failure in reversed(told)}.values()][::-1]

    def submit(self, unit: Sequence[Sample]) -> None:
        """Have samples scored: one whole group or several, the samples of each together. They fail together, too."""
        index = len(self._units)
        self._units.append([sample.row.source for sample in unit])
        for number, asked in enumerate(self._rewards):
            asked.follow()
            if self._queues:
                self._queues[number].put((index, unit))
            else:
                self._ask(number, index, unit)

    def finish(self) -> Scored:
        """Wait until everything is scored, or the round is over before: what is missing then counts as failed."""
        with self._changed:
            while len(self._answers) < len(self._units) * len(self._rewards) and not self._over():
                self._changed.wait(GLANCE)
                if self._threads and not all(thread.is_alive() for thread in self._threads):
                    self._aborting = self._aborting or "a thread that asks rewards has ended; see above"
            answers = dict(self._answers)
        entries = [asked.entry for asked in self._rewards]
        rows = [
            [answers.get((number, index)) or Answer.none(len(unit)) for index, unit in enumerate(self._units)]
            for number in range(len(entries))
        ]
        return Scored(
            {entry.label: _numbers(row) for entry, row in zip(entries, rows, strict=True)},
            {entry.label: self._failed(entry, row) for entry, row in zip(entries, rows, strict=True)},
            {entry.label: sum(len(a.failures) for a in row) for entry, row in zip(entries, rows, strict=True)},
            self.failures,
            {
                name: column
                for entry, row in zip(entries, rows, strict=True)
                for name, column in _parts(entry.label, row)
            },
            _words([entry.label for entry in entries], rows),
        )

    def close(self) -> None:
        """Let the threads end; what is not scored yet never will be."""
        self._aborting = self._aborting or "the round is over"
        for asked, queue in zip(self._rewards, self._queues, strict=False):
            for _ in range(asked.entry.workers):
                queue.put(None)

    def _over(self) -> bool:
        """Whether nobody waits for scores any more."""
        return self._aborting is not None or self._stopped()

    def _work(self, number: int) -> None:
        while self._next(number):
            pass

    def _next(self, number: int) -> bool:
        """Score what is next, and keep nothing of it; false when there will be no more."""
        task = self._queues[number].get()
        if task is not None:
            self._ask(number, *task)
        return task is not None

    def _ask(self, number: int, index: int, unit: Sequence[Sample]) -> None:
        asked = self._rewards[number]
        applies = [asked.entry.applies_to(sample.row.source) for sample in unit]
        own = [*compress(unit, applies)]
        try:
            answer = Answer.none(len(own)) if self._over() else asked.ask(own, self._over)
        except Exception as error:  # nothing may end a thread that others wait for
            answer = Answer.none(len(own), [f"{asked.title} cannot be asked: {said(error)}"], fatal=True)
        scores = iter(answer.scores)
        spread = [next(scores) if one else math.nan for one in applies]
        with self._changed:
            self._answers[number, index] = attrs.evolve(answer, scores=spread)
            if answer.failed and answer.failures:
                self._failures[number, index] = Failure(asked.entry.label, answer.failures[-1], own[0])
                self._lost[number] |= {sample.slot for sample in own}
                self._aborting = self._aborting or self._fatal(asked.entry, len(self._lost[number]), answer)
            self._changed.notify_all()

    def _failed(self, entry: RewardEntry, answers: Sequence[Answer]) -> Tensor:
        """Which samples `(N,)` have no score since a reward failed."""
        pairs = zip(answers, self._units, strict=True)
        return torch.tensor([a.failed and entry.applies_to(source) for a, unit in pairs for source in unit]).bool()

    def _fatal(self, entry: RewardEntry, lost: int, answer: Answer) -> str | None:
        """Whether a failure ends the run, and why."""
        why = answer.failures[-1]
        if entry.on_error == "abort" or answer.fatal:
            return why
        total = scored_by(entry, self._groups)
        return f"{too_many(entry, lost, total)}: {why}" if lost > entry.max_dropped * total else None


def scored_by(entry: RewardEntry, groups: Mapping[str, int]) -> int:
    """How many groups a reward scores, of so many by their source."""
    return sum(count for source, count in groups.items() if entry.applies_to(source))


def too_many(entry: RewardEntry, lost: int, total: int) -> str:
    """Why a run cannot go on without the scores of `lost` among `total` groups."""
    allowed = f"its `max_dropped` allows {entry.max_dropped:.0%}"
    return f"reward {entry.label!r} has no scores for {lost} of {total} groups, and {allowed}"


def _parts(label: str, answers: Sequence[Answer]) -> Iterator[tuple[str, Tensor]]:
    """A column for each part that any of the scores names, NaN where one does not."""
    parts = [score.parts if isinstance(score, Composite) else {} for answer in answers for score in answer.scores]
    for name in dict.fromkeys(name for one in parts for name in one):
        yield f"{label}/{name}", torch.tensor([one.get(name, math.nan) for one in parts], dtype=torch.float64)


def _words(labels: Sequence[str], rows: Sequence[Sequence[Answer]]) -> list[dict[str, str]]:
    """The words of each sample's scores, by `label/name`."""
    columns = [[score for answer in row for score in answer.scores] for row in rows]
    return [
        {
            f"{label}/{name}": text
            for label, score in zip(labels, scores, strict=True)
            if isinstance(score, Composite)
            for name, text in score.words.items()
        }
        for scores in zip(*columns, strict=True)
    ]


def _numbers(answers: Sequence[Answer]) -> Tensor:
    return torch.tensor([score for answer in answers for score in answer.scores], dtype=torch.float64)
