"""Scoring samples: every reward of a run, its backbones loaded once, its answers checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import attrs
import torch
from torch import Tensor

from flowfactory.registry import Registry
from flowfactory.reward import FunctionReward, GroupReward, Reward
from flowfactory.spec import RewardEntry
from flowfactory.types import Sample

BATCH = 64
"""Most samples a pointwise reward is handed at a time."""


class RewardError(RuntimeError):
    """A reward failed; the message names its label."""


@attrs.frozen(eq=False)
class _Labelled:
    label: str
    weight: float
    reward: Reward


class Judge:
    """The rewards of a run.

    Args:
        entries: the reward tables.
        backbones: where backbones are kept by key; judges that share it share them.
    """

    def __init__(self, entries: Sequence[RewardEntry], registry: Registry, backbones: dict[str, Any]) -> None:
        self._rewards = [
            _Labelled(e.label, e.weight, _build(registry.target("rewards", e.name), e.spec)) for e in entries
        ]
        self._backbones = backbones

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each reward, by label."""
        return {r.label: r.weight for r in self._rewards}

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load every reward; backbones that several ask for are made once."""
        for entry in self._rewards:
            entry.reward.load(device, dtype, self._shared)

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Scores `(N,)` float64 by label, in the order of `samples`; NaN where a reward does not apply.

        Samples of one group must be neighbours.

        Raises:
            RewardError: a reward raised, or returned something other than one finite number or None per sample.
        """
        return {
            r.label: torch.tensor(
                [s for part in _parts(r.reward, samples) for s in _scores(r, part)], dtype=torch.float64
            )
            for r in self._rewards
        }

    def _shared(self, key: str, factory: Callable[[], Any]) -> Any:
        if key not in self._backbones:
            self._backbones[key] = factory()
        return self._backbones[key]


def _build(target: Any, spec: Any) -> Reward:
    if isinstance(target, type) and issubclass(target, Reward):
        return target(spec)
    return FunctionReward(target)


def _parts(reward: Reward, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    if isinstance(reward, GroupReward):
        for _, group in groupby(samples, key=lambda sample: sample.slot):
            yield list(group)
    else:
        for start in range(0, len(samples), BATCH):
            yield samples[start : start + BATCH]


def _scores(entry: _Labelled, samples: Sequence[Sample]) -> list[float]:
    try:
        scores = list(entry.reward.score(samples))
    except Exception as error:
        raise RewardError(f"reward {entry.label!r} failed: {type(error).__name__}: {error}") from error
    if len(scores) != len(samples):
        raise RewardError(f"reward {entry.label!r} returned {len(scores)} scores for {len(samples)} samples")
    return [_number(entry.label, score, sample) for score, sample in zip(scores, samples, strict=True)]


def _number(label: str, score: object, sample: Sample) -> float:
    if score is None:
        return math.nan
    try:
        number = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(score, (str, bytes)) or not math.isfinite(number):
        raise RewardError(f"reward {label!r} returned {score!r}, not a finite number, for prompt {sample.row.prompt!r}")
    return number
