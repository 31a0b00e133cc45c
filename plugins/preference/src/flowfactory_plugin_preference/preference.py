"""Pref-GRPO's reward (Wang et al. 2025, arXiv:2508.20751): win rates within a group, by a vision-language judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from flowfactory import GroupReward, Sample, Score, ServerError, Shared
from flowfactory_plugin_judge.chat import Chat, frames_of

from flowfactory_plugin_preference import PreferenceSpec
from flowfactory_plugin_preference.win_rate import Comparison, outcome, pairs, win_rates


class Preference(GroupReward):
    """The share of its comparisons that a sample wins. Each two samples are compared twice, in both orders."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})
    spec: PreferenceSpec
    chat: Chat

    def reach(self) -> None:
        Chat(self.spec).reach()

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.chat = Chat(self.spec)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        shown = [frames_of(sample, self.spec.frames) for sample in samples]
        question = self.spec.question.replace("{prompt}", samples[0].row.prompt)

        def compare(pair: tuple[int, int]) -> Comparison:
            first, second = pair
            reply = self.chat.ask(question, [("First image:", shown[first]), ("Second image:", shown[second])])
            return Comparison(first, second, outcome(reply))

        comparisons = self.chat.all(compare, pairs(len(samples)))
        unclear = sum(one.outcome == "unclear" for one in comparisons)
        if unclear > self.spec.unclear * len(comparisons):
            raise ServerError(f"{unclear} of {len(comparisons)} replies of {self.spec.model} named no winner")
        return win_rates(len(samples), comparisons)
