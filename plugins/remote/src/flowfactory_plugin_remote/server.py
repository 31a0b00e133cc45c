"""The server side: rewards of this environment, behind the server that scorers of any environment have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flowfactory import Asked, Composite, RewardError
from flowfactory_scorer.server import Refused, Score, Served
from flowfactory_scorer.wire import Record

from flowfactory_plugin_remote.wire import samples_of


def served(rewards: Sequence[Asked]) -> dict[str, Served]:
    """Loaded rewards by their labels; each is asked `workers` times at once at most."""
    return {asked.entry.label: _served(asked) for asked in rewards}


def _served(asked: Asked) -> Served:
    def score(records: Sequence[Record]) -> list[Score]:
        with TemporaryDirectory(prefix="flowfactory-") as folder:
            samples = samples_of(records, Path(folder))
            try:
                found = [score for part in asked.parts(samples) for score in asked.call(part)]
            except RewardError as error:
                raise Refused(500, str(error)) from error
        return [_answer(score) for score in found]

    return Served(score, asked.is_group, asked.entry.workers, asked.entry.timeout)


def _answer(score: float | None) -> Score:
    if isinstance(score, Composite):
        parts = {name: _answer(part) for name, part in score.parts.items()}
        return {"total": float(score), "parts": parts} | ({"words": dict(score.words)} if score.words else {})
    return None if score is None or math.isnan(score) else score
