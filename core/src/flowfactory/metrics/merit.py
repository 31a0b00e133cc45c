"""How good a run was at its evaluations, as `[checkpoint] best` judges it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import attrs

from flowfactory.spec.tables import RewardEntry, Spec


@attrs.frozen
class Merit:
    """What an evaluation was worth; the higher the better."""

    epoch: int
    value: float

    def exceeds(self, other: Merit | None) -> bool:
        """Whether this one is better; the first one is."""
        return other is None or self.value > other.value


def score(prefix: str, entries: Sequence[RewardEntry], metrics: Mapping[str, float]) -> dict[str, float]:
    """`<prefix>/score`: the sum of the rewards' means, each times its weight; nothing where a mean is missing."""
    value = _sum(prefix, {entry.label: entry.weight for entry in entries if entry.weight != 0}, metrics)
    return {} if value is None else {f"{prefix}/score": value}


def watched(spec: Spec) -> frozenset[str]:
    """The rewards that count for nothing, as the metrics name them: `reward/<label>`, `eval/<label>`."""
    tables = {"reward": spec.rewards, "eval": spec.eval.rewards or spec.rewards}
    return frozenset(f"{prefix}/{e.label}" for prefix, entries in tables.items() for e in entries if e.weight == 0)


def judge(spec: Spec, epoch: int, metrics: Mapping[str, float]) -> Merit | None:
    """What the evaluation after an epoch was worth: the sum of the held-out rewards' means, each times its weight.

    None where there was no evaluation, where a mean is missing from it, and before the first epoch.
    """
    value = _sum("eval", weights(spec), metrics) if epoch > 0 else None
    return None if value is None else Merit(epoch, value)


def _sum(prefix: str, counting: Mapping[str, float], metrics: Mapping[str, float]) -> float | None:
    """Means times their weights, by label, together; `None` where there are none, or one is missing."""
    terms = [weight * metrics.get(f"{prefix}/{label}/mean", math.nan) for label, weight in counting.items()]
    value = math.fsum(terms)
    return value if terms and math.isfinite(value) else None


def best(spec: Spec, lines: Iterable[tuple[int, Mapping[str, float]]]) -> Merit | None:
    """The best of several evaluations, each with its epoch; the earliest of equal ones."""
    found = None
    for epoch, metrics in lines:
        merit = judge(spec, epoch, metrics)
        if merit is not None and merit.exceeds(found):
            found = merit
    return found


def evaluated(spec: Spec) -> list[RewardEntry]:
    """The rewards of evaluations: those that score a source with held-out prompts."""
    return [e for e in spec.eval.rewards or spec.rewards if any(map(e.applies_to, spec.data.held_out))]


def weights(spec: Spec) -> dict[str, float]:
    """How much each held-out reward counts. One that is chosen alone counts for 1, or -1 where less of it is wanted."""
    entries = evaluated(spec)
    if spec.checkpoint.best == "score":
        return {entry.label: entry.weight for entry in entries if entry.weight != 0}
    return {e.label: math.copysign(1.0, e.weight) for e in entries if spec.checkpoint.best == f"eval/{e.label}/mean"}
