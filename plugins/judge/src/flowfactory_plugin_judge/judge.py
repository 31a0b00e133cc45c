"""Grades by a vision-language model, one sample at a time.

    s = sum_a w_a s_a / sum_a w_a,   s_a = (n - lowest) / (highest - lowest),   or s_a = P("yes")

over the aspects a, with n the number that the judge names. The probability of "yes" to one question about the prompt is
VQAScore (Lin et al. 2024, arXiv:2404.01291).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar

import torch
from flowfactory import Composite, Reward, Sample, Score, ServerError, Shared

from flowfactory_plugin_judge import Aspect, JudgeSpec
from flowfactory_plugin_judge.chat import Chat, Shown, shown_of

NUMBER = "Think briefly, then end with a line that holds nothing but a number from {} (worst) to {} (best)."
YES = "Answer with one word, yes or no."

_LAST_LINE = re.compile(
    r"[^\w.+-]*(?:(?:score|answer|rating|number)\W*?)?([+-]?(?:\d+(?:\.\d+)?|\.\d+))\W*", re.IGNORECASE
)


class Judge(Reward):
    """What a judge says of each sample by itself, from 0 to 1."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt", "images"})
    spec: JudgeSpec
    chat: Chat

    def reach(self) -> None:
        Chat(self.spec).reach()

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.chat = Chat(self.spec)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        aspects = self.spec.aspects or (Aspect(name="judge", question=self.spec.question),)
        shown = [shown_of(sample, self.spec.frames) for sample in samples]
        asked = [(n, aspect) for n in range(len(samples)) for aspect in aspects]

        def grade(one: tuple[int, Aspect]) -> tuple[float | None, str]:
            number, aspect = one
            question = aspect.question.replace("{prompt}", samples[number].row.prompt)
            return self._grade(question, shown[number])

        grades = self.chat.all(grade, asked)
        each = [grades[n * len(aspects) : (n + 1) * len(aspects)] for n in range(len(samples))]
        scores = [self._score(aspects, own) for own in each]
        unclear = scores.count(None)
        if unclear > self.spec.unclear * len(samples):
            last = next(reply for grade, reply in reversed(grades) if grade is None)
            what = f"{unclear} of {len(samples)} samples have no clear answer of {self.spec.model}"
            raise ServerError(f"{what}; one was {last[-200:]!r}")
        return scores

    def _grade(self, question: str, shown: Shown) -> tuple[float | None, str]:
        """A grade from 0 to 1, none where the reply has no answer; and the reply."""
        spec = self.spec
        if spec.answer == "yes":
            first = self.chat.ask_first(f"{question}\n\n{YES}", shown)
            return first.of(("yes",), ("no",)), first.told()
        how = NUMBER.format(f"{spec.lowest:g}", f"{spec.highest:g}")
        reply = self.chat.ask(f"{question}\n\n{how}", shown)
        number = last_number(reply)
        if number is None or not spec.lowest <= number <= spec.highest:
            return None, reply
        return (number - spec.lowest) / (spec.highest - spec.lowest), reply

    def _score(self, aspects: Sequence[Aspect], grades: Sequence[tuple[float | None, str]]) -> Score:
        parts = {aspect.name: grade for aspect, (grade, _) in zip(aspects, grades, strict=True)}
        words = {aspect.name: reply for aspect, (_, reply) in zip(aspects, grades, strict=True)}
        known = [grade for grade in parts.values() if grade is not None]
        if len(known) < len(parts):
            return None
        weights = [aspect.weight for aspect in aspects]
        total = math.fsum(w * grade for w, grade in zip(weights, known, strict=True)) / math.fsum(weights)
        return Composite(total, parts if self.spec.aspects else {}, words)


def last_number(reply: str) -> float | None:
    """The number that the last line of a reply consists of; `8/10` and `**8**` are 8."""
    lines = reply.strip().splitlines()
    found = _LAST_LINE.fullmatch(re.sub(r"/\s*\d+(?:\.\d+)?\W*$", "", lines[-1])) if lines else None
    return float(found.group(1)) if found else None
