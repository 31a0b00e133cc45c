"""Asking one reward: in pieces, in time, and with its answers checked. A failure is never a score."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from copy import deepcopy
from itertools import groupby, islice
from queue import Empty, Queue
from threading import Thread
from time import monotonic, sleep
from types import MappingProxyType
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from flowfactory.calling import Meddled, calling
from flowfactory.contracts.key import NAME
from flowfactory.contracts.reward import DifferentiableReward, GroupReward, Reward
from flowfactory.contracts.types import Sample
from flowfactory.errors import RunError, harmless, said
from flowfactory.rewards.places import GLANCE, Place, Places, Unwanted, never
from flowfactory.rewards.retry import retried
from flowfactory.spec.tables import RewardEntry

LARGEST = 1e100
"""Scores beyond it have no standard deviation in float64."""
WORDS = 2000
"""Characters of a score's words that are kept."""


class RewardError(RunError):
    """A reward failed; the message names its label."""


class Failed(RewardError):
    """A call failed; another one may not."""


class Untrusted(RewardError):
    """A reward changed how others compute, so that more than its own scores may be wrong."""


class Composite(float):
    """`Composite(0.7, {"colour": 0.9, "count": 0.5})` counts as 0.7; its parts are shown with it.

    words: texts by name, such as a judge's reply; kept with samples.
    """

    parts: Mapping[str, float | None]
    words: Mapping[str, str]

    def __new__(
        cls, total: float, parts: Mapping[str, float | None], words: Mapping[str, str] = MappingProxyType({})
    ) -> Composite:
        made = super().__new__(cls, total)
        made.parts, made.words = parts, words
        return made


@attrs.frozen(eq=False)
class Answer:
    """What a reward said about `N` samples.

    scores: NaN where it does not apply, and everywhere after a failure. failures: why each failed call failed.
    failed: whether there are no scores because of them. fatal: whether the scores of others may be wrong with them.
    """

    scores: Sequence[float]
    failures: Sequence[str]
    failed: bool
    fatal: bool = False

    @staticmethod
    def none(count: int, failures: Sequence[str] = (), fatal: bool = False) -> Answer:
        """No scores."""
        return Answer([math.nan] * count, failures, failed=True, fatal=fatal)


class Asked:
    """A reward as a run asks it; safe to use from several threads.

    Every call gets copies of the samples, and changes that it makes to shared state are undone (see `calling`).
    A call that times out cannot be stopped. It keeps its place among the `workers` until it returns, so a reward never
    has more calls than that at a time.
    """

    def __init__(self, entry: RewardEntry, reward: Reward) -> None:
        self.entry, self.reward = entry, reward
        self.device = torch.device("cpu")
        self._places = Places(entry.workers, entry.timeout)

    @property
    def title(self) -> str:
        """The reward as messages name it."""
        return f"reward {self.entry.label!r}"

    @property
    def is_group(self) -> bool:
        """Whether it scores the samples of a group against each other."""
        return isinstance(self.reward, GroupReward)

    @property
    def alone(self) -> bool:
        """Whether it has a score for a sample that is not part of a group."""
        return not isinstance(self.reward, GroupReward) or self.reward.alone

    @property
    def scores_by_value(self) -> bool:
        """Whether it has no `score` of its own; then media may lie on its device."""
        return type(self.reward).score is DifferentiableReward.score

    def begin(self) -> None:
        """A round of scoring begins."""
        self._places.begin()
        self.follow()

    def follow(self) -> None:
        """Let later calls see what was computed so far, without waiting for anything later.

        On a GPU rewards have a stream of their own; otherwise reading a result back would wait for sampling.
        """
        if (beside := _stream(self.device)) is not None:
            beside.wait_stream(torch.cuda.current_stream(self.device))

    def ask(self, samples: Sequence[Sample], over: Callable[[], bool] = never) -> Answer:
        """Its scores, with retries as `on_error` says; samples of one group must be adjacent.

        Args:
            over: whether the scores are no longer needed; called a few times a second. Then there is no result.
        """
        entry, failures, scores = self.entry, list[str](), list[float]()
        retries = entry.retries if entry.on_error == "retry" else 0
        try:
            for part in self.parts(samples):
                scores += retried(
                    lambda part=part: self.call(part, over),  # type: ignore[misc]
                    retries,
                    entry.retry_pause,
                    (Failed,),
                    lambda error: failures.append(str(error)),
                    lambda seconds: _pause(seconds, over),
                )
        except (Failed, Unwanted):
            return Answer.none(len(samples), failures)
        except Untrusted as error:
            return Answer.none(len(samples), [*failures, str(error)], fatal=True)
        return Answer(scores, failures, failed=False)

    def parts(self, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        """The samples of each call: at most `micro_batch`, or one group."""
        if self.is_group:
            for _, group in groupby(samples, key=lambda sample: sample.slot):
                yield list(group)
        else:
            for start in range(0, len(samples), self.entry.micro_batch):
                yield samples[start : start + self.entry.micro_batch]

    def call(self, samples: Sequence[Sample], over: Callable[[], bool] = never) -> list[float]:
        """One call with at most `micro_batch` samples or one group: a number for each, NaN where it does not apply.

        Raises:
            Failed: it raised, took too long, or returned something other than one finite number or None each.
            Untrusted: it changed how others compute.
            Unwanted: it is `over`.
        """
        place = self._places.take(over)
        if place is None:
            raise Failed(f"{self.title} is still busy with calls that timed out")
        replies: Queue[Reply] = Queue(1)
        try:
            Thread(target=self._work, args=(samples, replies, place), name=self.title, daemon=True).start()
        except RuntimeError as error:
            self._places.leave(place)
            raise Failed(f"{self.title} cannot be asked: {said(error)}") from error
        reply = _reply(replies, self.entry.timeout, over)
        if reply is None:
            self._places.hang(place)
            raise Failed(f"{self.title} took longer than {self.entry.timeout:g} s")
        if isinstance(reply, RewardError):
            raise reply
        return reply

    def _work(self, samples: Sequence[Sample], replies: Queue[Reply], place: Place) -> None:
        try:
            reply: list[float] | RewardError = self._answer(samples)
        except Failed as error:
            reply = error
        except Meddled as error:
            reply = Untrusted(f"{error}: what was computed meanwhile may be wrong; have it leave that alone")
        except BaseException as error:  # nothing may end a thread that others wait for
            reply = Failed(f"{self.title} failed: {said(error)}")
            reply.__cause__ = error
        self._places.leave(place)
        replies.put(Reply(reply, monotonic()))

    def _answer(self, samples: Sequence[Sample]) -> list[float]:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # threads do not inherit it
        with torch.cuda.stream(_stream(self.device)), calling(self.title), torch.no_grad():
            # Answers are read here, since a generator only computes when it is read.
            answer: Any = self.reward.score([copied(sample) for sample in samples])
            if isinstance(answer, (Mapping, Set, str, bytes)):
                first = f", first {samples[0].row.prompt!r}" if samples else ""
                what = f"{self.title} returned a {type(answer).__name__}, not a sequence of scores"
                raise Failed(f"{what} in the order of the samples' prompts{first}")
            scores = list(islice(answer, len(samples) + 1))
            if len(scores) != len(samples):
                count = f"more than {len(samples)}" if len(scores) > len(samples) else len(scores)
                raise Failed(f"{self.title} returned {count} scores for {len(samples)} samples")
            return [number(self.entry.label, one, sample) for one, sample in zip(scores, samples, strict=True)]


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """In what all rewards on a GPU compute, one after another: they may share what each of them has made."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


@attrs.frozen(eq=False)
class Reply:
    """What a call said, and when."""

    said: list[float] | RewardError
    at: float


def _reply(replies: Queue[Reply], seconds: float, over: Callable[[], bool]) -> list[float] | RewardError | None:
    """What a call replies, or nothing in so many seconds; however busy the machine is with other things."""
    end = monotonic() + seconds
    while True:
        try:
            reply = replies.get(timeout=max(0.0, min(GLANCE, end - monotonic())))
            return reply.said if reply.at <= end else None
        except Empty:
            if over():
                raise Unwanted from None
            if monotonic() >= end:
                return None


def _pause(seconds: float, over: Callable[[], bool]) -> None:
    """Let seconds go by while somebody waits."""
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0:
        if over():
            raise Unwanted
        sleep(min(left, GLANCE))


def number(label: str, score: Any, sample: Sample) -> float:
    """A score as a float, NaN for `None`.

    Raises:
        Failed: it is not one finite number, or too large to be compared with others.
    """
    if score is None:
        return math.nan
    try:
        value = float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value = math.nan
    logical = isinstance(score, (bool, np.bool_)) or (isinstance(score, Tensor) and score.dtype == torch.bool)
    if isinstance(score, (str, bytes)) or logical or not math.isfinite(value):
        what = f"reward {label!r} returned {_shown(score)}, not a finite number"
    elif abs(value) > LARGEST:
        what = f"reward {label!r} returned {value:g}, too large to be compared with others (at most {LARGEST:g})"
    elif isinstance(score, Composite):
        parts = {_part(label, k): number(f"{label}/{k}", v, sample) for k, v in score.parts.items()}
        return Composite(value, parts, {_part(label, k): harmless(str(v), WORDS) for k, v in score.words.items()})
    else:
        return value
    raise Failed(f"{what}, for prompt {sample.row.prompt!r}")


def _part(label: str, name: Any) -> str:
    if isinstance(name, str) and re.fullmatch(NAME, name):
        return name
    raise Failed(f"reward {label!r} names a part {_shown(name)}; expected a name such as labels have")


def _shown(value: Any) -> str:
    try:
        return harmless(repr(value), 200)
    except Exception:
        return f"a {type(value).__name__}"


def copied(sample: Sample) -> Sample:
    """The same sample, of which nothing is shared that could be changed."""
    row = attrs.evolve(sample.row, metadata=deepcopy(sample.row.metadata))
    latents = None if sample.latents is None else sample.latents.clone()
    conditions = sample.conditions and {name: tensor.clone() for name, tensor in sample.conditions.items()}
    return attrs.evolve(sample, row=row, media=sample.media.clone(), latents=latents, conditions=conditions)
