"""Seeing a reward that has nothing to say; a policy that exploits its reward: one that it is trained on rises while one
that it is not trained on falls; and probability ratios that are off 1 before anything was learned.

Of a mean over `N` samples with spread `s`, the error is `e = s / sqrt(N)`. A rise or a fall counts where it is larger
than twice the error of the difference, `sqrt(e_1^2 + e_2^2)`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence

import attrs

from flowfactory.spec.tables import Spec

log = logging.getLogger("flowfactory")

ERRORS = 2.0
DEVIATION, TENTH = "train/first_deviation", 0.1
"""How far from 1 ratios may be before any update, in clip widths."""


@attrs.frozen
class Reading:
    """The mean of a reward at an epoch, and the mean's error."""

    epoch: int
    mean: float
    error: float

    def exceeds(self, other: Reading) -> bool:
        """Whether this mean is higher than the other, beyond their errors."""
        return self.mean - other.mean > ERRORS * math.hypot(self.error, other.error)


class Watch:
    """Compares the rewards of a run as their means come in. A `Tracker`.

    A held-out reward is one of `[[eval.reward]]` that is not trained on, or a `[[reward]]` of weight 0.

    Args:
        prompts: how many held-out prompts there are, by their source.
        past: the lines of `metrics.jsonl` that a resumed run already has.
        left_out: labels of rewards that evaluation does not ask.
    """

    def __init__(
        self,
        spec: Spec,
        prompts: Mapping[str, int],
        past: Sequence[Mapping[str, float]] = (),
        left_out: Collection[str] = (),
    ) -> None:
        self._sampling, self._prompts = spec.sampling, prompts
        self._entries = {
            "reward": {entry.label: entry for entry in spec.rewards},
            "eval": {entry.label: entry for entry in spec.eval.rewards or spec.rewards},
        }
        self._trained = {entry.label: entry.weight for entry in spec.rewards if entry.weight != 0}
        watched = [entry.label for entry in (*spec.rewards, *spec.eval.rewards) if entry.label not in self._trained]
        self._held_out = list(dict.fromkeys(watched))
        self._evaluated = [label for label in self._entries["eval"] if self._scored("eval", label, {})]
        self._evaluated = [label for label in self._evaluated if label not in left_out]
        self._silent: set[tuple[str, str]] = set()
        self._readings: dict[str, list[Reading]] = {}
        self._told: set[tuple[str, str]] = set()
        self._rounded = any(line.get(DEVIATION, 0.0) > TENTH for line in past)
        for line in past:
            self._read(line, int(line["epoch"]))
            self._silent |= set(self._without_scores(line))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take note of the means of epoch `step`, and warn."""
        self._read(metrics, step)
        for prefix, label in self._without_scores(metrics):
            if (prefix, label) not in self._silent:
                self._silent.add((prefix, label))
                what = "sample; nothing is learned from it" if prefix == "reward" else "held-out prompt"
                log.warning("epoch %d: reward %r has no score for any %s", step, label, what)
        found = self.suspicions()
        for trained, held_out, since in found:
            if (trained, held_out) not in self._told:
                log.warning(
                    "epoch %d: since epoch %d the trained reward %r has risen while the held-out %r has fallen; "
                    "the policy may be exploiting %r",
                    step, since, trained, held_out, trained,
                )  # fmt: skip
        self._told = {(trained, held_out) for trained, held_out, _ in found}
        if metrics.get(DEVIATION, 0.0) > TENTH and not self._rounded:
            self._rounded = True
            log.warning(
                "epoch %d: before any update, probability ratios were off 1 by %.2g of the clip width: sampling and "
                "updates round differently, and what is clipped is in part rounding. Set [trainer] old to "
                '"replayed", or the same micro_batch in [sampling] and [optimizer]',
                step, metrics[DEVIATION],
            )  # fmt: skip

    def finish(self) -> None:
        """Nothing is left to be done."""

    def suspicions(self) -> list[tuple[str, str, int]]:
        """Trained reward, held-out reward, and the epoch since which they part, wherever they do now."""
        found = []
        for held_out in self._held_out:
            readings = self._readings.get(held_out, [])
            if readings:
                best = max(readings, key=lambda reading: reading.mean)
                if best.exceeds(readings[-1]):
                    found += [(name, held_out, best.epoch) for name in self._trained if self._risen(name, best.epoch)]
        return found

    def _without_scores(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """The rewards that were asked and had no score, though nothing failed: one may apply to no sample."""
        sampled = self._entries["reward"] if "time/sample" in metrics else ()
        asked = [("reward", label, "failed_groups") for label in sampled if self._scored("reward", label, metrics)]
        asked += [("eval", label, "failed") for label in self._evaluated if "time/evaluate" in metrics]
        return [
            (prefix, label)
            for prefix, label, failed in asked
            if f"{prefix}/{label}/mean" not in metrics and not metrics.get(f"{prefix}/{label}/{failed}")
        ]

    def _scored(self, prefix: str, label: str, metrics: Mapping[str, float]) -> float:
        """How many samples a reward scores: of an epoch, or in an evaluation."""
        entry = self._entries[prefix][label]
        if prefix == "eval":
            return sum(count for source, count in self._prompts.items() if entry.applies_to(source))
        own = [metrics.get(f"source/{source}/groups", 0) for source in entry.sources or ()]
        return (self._sampling.prompts if entry.sources is None else sum(own)) * self._sampling.group

    def _risen(self, label: str, since: int) -> bool:
        """Whether a trained reward is now better than it was then."""
        readings = [reading for reading in self._readings.get(label, []) if reading.epoch >= since]
        if len(readings) < 2:
            return False
        then, now = readings[0], readings[-1]
        return now.exceeds(then) if self._trained[label] > 0 else then.exceeds(now)

    def _read(self, metrics: Mapping[str, float], epoch: int) -> None:
        for label in (*self._trained, *self._held_out):
            # Held-out prompts where there is a choice: they are the same at every evaluation.
            prefix = "eval" if label in self._evaluated else "reward"
            if f"{prefix}/{label}/mean" in metrics:
                error = metrics[f"{prefix}/{label}/std"] / math.sqrt(self._scored(prefix, label, metrics))
                self._readings.setdefault(label, []).append(Reading(epoch, metrics[f"{prefix}/{label}/mean"], error))
