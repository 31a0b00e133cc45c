"""Soft-TIFA of GenEval 2 (Kamath et al. 2025, arXiv:2512.16853): a question for each atom of a compositional prompt.

    s = (prod_i p_i)^(1 / n),   p_i the probability of the right answer to question i of n

or the arithmetic mean. The parts of the score are the arithmetic means of each skill's questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from flowfactory import Composite, Reward, Sample, Score, ServerError, Shared
from flowfactory_plugin_judge.chat import Chat, Shown, shown_of

from flowfactory_plugin_geneval import GenEvalSpec

QUESTIONS, SKILLS = "vqa_list", "skills"
"""Columns of the data: `[[question, answer], …]`, and optionally the skill that each question is about."""
HOW = "Answer in one word."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
WHETHER = ("yes", "no")


@attrs.frozen
class Question:
    """One atom of a prompt."""

    text: str
    answer: str
    skill: str | None


class GenEval(Reward):
    """How surely each part of a prompt is there, together from 0 to 1; does not apply to rows without questions."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", QUESTIONS, SKILLS})
    spec: GenEvalSpec
    chat: Chat

    def reach(self) -> None:
        Chat(self.spec).reach()

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.chat = Chat(self.spec)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        questions = [questions_of(sample.row.metadata) for sample in samples]
        shown = [shown_of(attrs.evolve(s, row=attrs.evolve(s.row, images=())), self.spec.frames) for s in samples]
        asked = [(own, question) for own, some in zip(shown, questions, strict=True) for question in some]
        found = iter(self.chat.all(lambda one: self._probability(*one), asked))
        return [self._score(some, [next(found) for _ in some]) if some else None for some in questions]

    def _probability(self, shown: Shown, question: Question) -> float:
        """How likely the right answer is.

        Raises:
            ServerError: the reply was to begin with something else than an answer, too.
        """
        first = self.chat.ask_first(f"{question.text} {HOW}", shown)
        wanted, others = answers(question.answer)
        found = first.of(wanted, others)
        if found is None:
            what = f"{self.spec.model} was to answer {question.text!r} with none of the answers there are"
            raise ServerError(f"{what}, but {first.told()}")
        return found

    def _score(self, questions: Sequence[Question], found: Sequence[float]) -> Score:
        skills: dict[str, list[float]] = {}
        for question, p in zip(questions, found, strict=True):
            if question.skill is not None:
                skills.setdefault(question.skill, []).append(p)
        parts = {skill: math.fsum(own) / len(own) for skill, own in skills.items()}
        told = "\n".join(f"{q.text} {q.answer}: {p:.3f}" for q, p in zip(questions, found, strict=True))
        return Composite(means(found)[self.spec.mean], parts, {"questions": told})


def means(found: Sequence[float]) -> Mapping[str, float]:
    """The geometric and the arithmetic mean of probabilities above 0."""
    geometric = math.exp(math.fsum(map(math.log, found)) / len(found))
    return {"geometric": geometric, "arithmetic": math.fsum(found) / len(found)}


def answers(right: str) -> tuple[Sequence[str], Sequence[str] | None]:
    """What a right answer may look like, and what wrong ones may, any word where absent. Numbers have digits, too."""
    right = right.strip().casefold()
    if right in WHETHER:
        return (right,), WHETHER
    digits = [str(number) for number in range(len(NUMBERS))]
    if right in (*NUMBERS, *digits):
        value = NUMBERS.index(right) if right in NUMBERS else int(right)
        return (NUMBERS[value], str(value)), (*NUMBERS, *digits, *WHETHER)
    return (right,), None


def questions_of(metadata: Mapping[str, Any]) -> list[Question]:
    """The questions of a row; none where it has none.

    Raises:
        ValueError: they are written otherwise.
    """
    asked, skills = metadata.get(QUESTIONS), metadata.get(SKILLS)
    if asked is None:
        return []
    pairs = isinstance(asked, list) and all(_is_pair(one) for one in asked)
    if not pairs:
        raise ValueError(f"column `{QUESTIONS}` expects [[question, answer], …], texts, not {str(asked)[:200]}")
    if skills is not None and not (isinstance(skills, list) and len(skills) == len(asked)):
        raise ValueError(
            f"column `{SKILLS}` expects a skill for each of {len(asked)} questions, not {str(skills)[:200]}"
        )
    own = skills or [None] * len(asked)
    return [Question(text, answer, None if s is None else str(s)) for (text, answer), s in zip(asked, own, strict=True)]


def _is_pair(one: Any) -> bool:
    return isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) and text.strip() for text in one)
