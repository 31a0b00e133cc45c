"""Asking one reward: in pieces, in time, and with its answers checked. A failure is never a score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from queue import Empty, Queue
from threading import Semaphore, Thread
from typing import Any

import attrs
import torch

from flowfactory.contracts.reward import GroupReward, Reward
from flowfactory.contracts.specs import RewardEntry
from flowfactory.contracts.types import Sample
from flowfactory.errors import RunError
from flowfactory.rewards.retry import retried


class RewardError(RunError):
    """A reward failed; the message names its label."""


@attrs.frozen(eq=False)
class Answer:
    """What a reward said about `N` samples.

    scores: NaN where it does not apply, and everywhere after a failure. failures: why each failed call failed.
    failed: whether there are no scores because of them.
    """

    scores: Sequence[float]
    failures: Sequence[str]
    failed: bool


class Asked:
    """A reward as a run asks it; safe to use from several threads.

    A call that times out cannot be stopped. It keeps its place among the `workers` until it returns, so a reward never
    has more calls than that at a time.
    """

    def __init__(self, entry: RewardEntry, reward: Reward) -> None:
        self.entry, self.reward = entry, reward
        self.device = torch.device("cpu")
        self._places = Semaphore(entry.workers)

    @property
    def is_group(self) -> bool:
        """Whether it scores the samples of a group against each other."""
        return isinstance(self.reward, GroupReward)

    def ask(self, samples: Sequence[Sample]) -> Answer:
        """Its scores, asked for again as `on_error` says; samples of one group must be neighbours."""
        entry, failures, scores = self.entry, list[str](), list[float]()
        retries = entry.retries if entry.on_error == "retry" else 0
        for part in self._parts(samples):
            try:
                scores += retried(
                    lambda part=part: self.call(part),  # type: ignore[misc]
                    retries,
                    entry.retry_pause,
                    (RewardError,),
                    lambda error: failures.append(str(error)),
                )
            except RewardError:
                return Answer([math.nan] * len(samples), failures, failed=True)
        return Answer(scores, failures, failed=False)

    def call(self, samples: Sequence[Sample]) -> list[float]:
        """One call with at most `micro_batch` samples or one group: a number for each, NaN where it does not apply.

        Raises:
            RewardError: it raised, took too long, or returned something other than one finite number or None each.
        """
        label, seconds = self.entry.label, self.entry.timeout
        if not self._places.acquire(timeout=seconds):
            raise RewardError(f"reward {label!r} is still busy with calls that timed out")
        replies: Queue[list[float] | RewardError] = Queue(1)
        Thread(target=self._work, args=(samples, replies), name=f"reward {label}", daemon=True).start()
        try:
            reply = replies.get(timeout=seconds)
        except Empty:
            raise RewardError(f"reward {label!r} took longer than {seconds:g} s") from None
        if isinstance(reply, RewardError):
            raise reply
        return reply

    def _work(self, samples: Sequence[Sample], replies: Queue[list[float] | RewardError]) -> None:
        try:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # threads do not inherit it
            with torch.no_grad():
                replies.put(self._checked(samples))
        except RewardError as error:
            replies.put(error)
        except BaseException as error:  # a reward that calls sys.exit() has failed, too
            failed = RewardError(f"reward {self.entry.label!r} failed: {type(error).__name__}: {error}")
            failed.__cause__ = error
            replies.put(failed)
        finally:
            self._places.release()

    def _checked(self, samples: Sequence[Sample]) -> list[float]:
        label, scores = self.entry.label, list(self.reward.score(samples))
        if len(scores) != len(samples):
            raise RewardError(f"reward {label!r} returned {len(scores)} scores for {len(samples)} samples")
        return [number(label, score, sample) for score, sample in zip(scores, samples, strict=True)]

    def _parts(self, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        if self.is_group:
            for _, group in groupby(samples, key=lambda sample: sample.slot):
                yield list(group)
        else:
            for start in range(0, len(samples), self.entry.micro_batch):
                yield samples[start : start + self.entry.micro_batch]


def number(label: str, score: Any, sample: Sample) -> float:
    """A score as a float, NaN for `None`.

    Raises:
        RewardError: it is not one finite number.
    """
    if score is None:
        return math.nan
    try:
        value = float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value = math.nan
    if isinstance(score, (str, bytes)) or not math.isfinite(value):
        raise RewardError(f"reward {label!r} returned {score!r}, not a finite number, for prompt {sample.row.prompt!r}")
    return value
