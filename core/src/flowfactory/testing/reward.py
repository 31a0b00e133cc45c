"""What every reward owes: one number per sample that depends on the sample and on nothing else."""

from __future__ import annotations

import copy
import inspect
import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from flowfactory.contracts.reward import DifferentiableReward, Reward
from flowfactory.contracts.specs import DifferentiableSpec
from flowfactory.contracts.types import Row, Sample
from flowfactory.rewards.asking import Asked
from flowfactory.rewards.scoring import build
from flowfactory.spec.tables import RewardEntry
from flowfactory.testing.subject import Broken, Check, NotOwed, Subject, cause, expect, offline

CPU = torch.device("cpu")
TOLERANCE = 1e-4
"""Largest difference of scores that should be equal, absolute or relative to the larger: batches round differently."""
CLOSE, SLOPE, STEP = 0.05, 0.05, 4e-3
"""How far values may be off scores, of the scores' spread; slopes off what is gained; and the largest step, of 1."""
MOST = 4
"""Samples of a call."""
OTHER_WORDS = "an entirely different text"
BUILT_IN = frozenset({"media", "prompt", "images"})


class RewardSubject(Subject):
    """A reward, loaded on the CPU and asked as a run asks it."""

    def checks(self) -> Sequence[Check]:
        return CHECKS

    def tiny(self, folder: Path) -> Mapping[str, Any]:
        if not inspect.isclass(self.target):
            return {}  # a bare function
        target: Any = self.target
        made: Mapping[str, Any] = target.tiny(folder)
        return made

    def make(self) -> Reward:
        return build(self.target, self.spec)

    @cached_property
    def asked(self) -> Asked:
        """The reward, loaded."""
        asked = Asked(RewardEntry(name=self.entry.name, label=self.entry.name, spec=self.spec), self.make())
        backbones: dict[str, Any] = {}

        def shared(key: str, factory: Any) -> Any:
            if key not in backbones:
                backbones[key] = factory()
            return backbones[key]

        with offline():
            asked.reward.load(CPU, torch.float32, shared)
        return asked

    def scores(self, samples: Sequence[Sample]) -> list[float]:
        """Its scores; NaN where it does not apply."""
        return self.asked.call(samples)

    @cached_property
    def expected(self) -> list[float]:
        """Its scores of the samples."""
        return self.scores(self.samples())

    def samples(self) -> list[Sample]:
        """Images of 64 x 64 pixels, each with a prompt of its own; those of a group reward share theirs.

        Raises:
            NotOwed: the reward reads what only a model makes.
        """
        if inner := sorted(self.asked.reward.reads & {"latents", "conditions"}):
            raise NotOwed(f"it reads {' and '.join(inner)}, which only a model makes; try it in a run")
        rows = [self._with_columns(row) for row in self.hints.rows[:MOST]]
        if self.asked.is_group:
            rows = [rows[0]] * len(rows)
        return [Sample(row, image, 0, i) for i, (row, image) in enumerate(zip(rows, pictures(len(rows)), strict=True))]

    def _with_columns(self, row: Row) -> Row:
        columns = dict.fromkeys(self.asked.reward.reads - BUILT_IN, "1")
        return attrs.evolve(row, metadata={**columns, **row.metadata})


def pictures(count: int) -> Tensor:
    """Images `(count, 3, 64, 64)` in [0, 1]: soft blots of colour, each time the same."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")


def loads_offline(subject: RewardSubject) -> None:
    """It loads without another machine's help, but for servers its spec names on this one."""
    expect(isinstance(subject.asked.reward, Reward), "it is no reward")


def one_score_each(subject: RewardSubject) -> None:
    """It returns one finite number or None for each sample, from a thread other than the one that loaded it."""
    expect(len(subject.expected) == len(subject.samples()), "samples lack a score")


def something_applies(subject: RewardSubject) -> None:
    """It has a number for at least one of the samples it is tried on."""
    expect(
        not all(map(math.isnan, subject.expected)),
        "it applies to none of the prompts it is tried on; name others with `prompts`",
    )


def repeatable(subject: RewardSubject) -> None:
    """The same samples have the same scores when asked again."""
    _same(subject.expected, subject.scores(subject.samples()), "asked twice, it says")


def permutation(subject: RewardSubject) -> None:
    """The order in which samples come does not matter."""
    samples = subject.samples()
    order = [*range(1, len(samples)), 0]
    found = subject.scores([samples[i] for i in order])
    _same([subject.expected[i] for i in order], found, "in another order, it says")


def batch_independence(subject: RewardSubject) -> None:
    """A sample's score does not depend on what is scored with it: a batch of one says what a batch of many says."""
    if subject.asked.is_group:
        raise NotOwed("a group reward compares the samples of a group")
    alone = [score for sample in subject.samples() for score in subject.scores([sample])]
    _same(subject.expected, alone, "one at a time, it says")


def reads_what_it_declares(subject: RewardSubject) -> None:
    """What it does not name in `reads` does not move its scores."""
    reads = subject.asked.reward.reads
    for name, changed in _changes(subject.samples()).items():
        if name not in reads:
            found = subject.scores(changed)
            _same(subject.expected, found, f"with another {name}, which `reads` does not name, it says")


def inputs_stay(subject: RewardSubject) -> None:
    """Scoring leaves the samples as they were."""
    samples = subject.samples()
    before = [(sample.media.clone(), copy.deepcopy(sample.row)) for sample in samples]
    with torch.no_grad():
        subject.asked.reward.score(samples)  # not by way of core, which hands out copies
    for sample, (media, row) in zip(samples, before, strict=True):
        expect(torch.equal(sample.media, media), "it changes the media it is given")
        expect(sample.row == row, f"it changes the row it is given, from {row} to {sample.row}")


def no_side_effects(subject: RewardSubject) -> None:
    """Scoring leaves everybody's random numbers, and torch's settings, as they were."""
    samples, _ = subject.samples(), (torch.rand(()), np.random.random(), random.random())  # so that any seeding shows
    before = _settings()
    with torch.no_grad():
        subject.asked.reward.score(samples)
    changed = [name for name, value in _settings().items() if value != before[name]]
    expect(not changed, f"scoring changes {' and '.join(changed)}")


def empty_input(subject: RewardSubject) -> None:
    """Of no samples it returns no scores."""
    if subject.asked.is_group:
        raise NotOwed("a group reward is only asked about whole groups")
    scores = subject.scores([])
    expect(scores == [], f"of no samples it returns {scores}")


def groups_of_any_size(subject: RewardSubject) -> None:
    """A group reward judges groups of every size, of one sample too as evaluations ask it: in numbers, or with None."""
    if not subject.asked.is_group:
        raise NotOwed("it judges each sample on its own")
    for size in range(1, len(subject.samples()) + 1):
        try:
            scores = subject.scores(subject.samples()[:size])
        except Exception as error:
            raise Broken(f"asked about a group of {size}, it fails: {cause(error)}") from error
        expect(len(scores) == size, f"of a group of {size} it returns {len(scores)} scores")


def can_be_placed(subject: RewardSubject) -> None:
    """After it is told its place again, it scores as before."""
    expected = subject.expected
    subject.asked.reward.place(CPU)
    _same(expected, subject.scores(subject.samples()), "after `place`, it says")


def differentiable_by_contract(subject: RewardSubject) -> None:
    """A reward with a gradient is a `DifferentiableReward` whose spec, which `check` judges by, says so as well."""
    can, says = isinstance(subject.asked.reward, DifferentiableReward), isinstance(subject.spec, DifferentiableSpec)
    expect(can == says, f"it is{'' if can else ' not'} one, and its spec says that it is{'' if says else ' not'}")


def value_agrees_with_score(subject: RewardSubject) -> None:
    """What has a gradient is what is scored: samples differ in both alike. `CLOSE` says how far off it may be."""
    reward, samples = _differentiable(subject), subject.samples()
    with torch.no_grad():
        found = reward.value(torch.stack([s.media for s in samples]), [s.row for s in samples])
    expect(found.shape == (len(samples),), f"values have the shape {tuple(found.shape)} for {len(samples)} samples")
    expected = torch.tensor(subject.expected, dtype=torch.float64)
    gap, spread = float((found.double().cpu() - expected).abs().max()), float(expected.max() - expected.min())
    expect(gap <= CLOSE * spread + TOLERANCE, f"values are up to {gap:.1e} off scores that differ by {spread:.1e}")


def value_has_a_gradient(subject: RewardSubject) -> None:
    """The gradient of each sample's value is finite, not zero, its own, and what a small step along it gains."""
    reward, samples = _differentiable(subject), subject.samples()
    rows = [s.row for s in samples]
    media = torch.stack([s.media for s in samples]).clamp(0.1, 0.9).requires_grad_()
    values = reward.value(media, rows)
    expect(values.requires_grad, "values have no gradient; rounding, numpy and PIL end it")
    for i in range(len(samples)):
        (slope,) = torch.autograd.grad(values[i], media, retain_graph=True)
        expect(slope.isfinite().all(), f"the gradient of sample {i} is not finite")
        expect(bool((slope[i] != 0).any()), f"the gradient of sample {i} is 0 everywhere")
        expect(not slope[torch.arange(len(samples)) != i].any(), f"the value of sample {i} depends on another's media")
        aim = slope[i] / slope[i].norm()
        step = STEP / float(aim.abs().max())
        with torch.no_grad():
            ahead, back = (reward.value(media[i : i + 1] + sign * step * aim, rows[i : i + 1])[0] for sign in (1, -1))
        gain, said = float(ahead - back) / (2 * step), float(slope[i].norm())
        near = abs(gain - said) <= SLOPE * said
        expect(near, f"along the gradient of sample {i} its value gains {gain:.3g}, and its slope says {said:.3g}")


CHECKS = (
    loads_offline,
    one_score_each,
    something_applies,
    repeatable,
    permutation,
    batch_independence,
    reads_what_it_declares,
    inputs_stay,
    no_side_effects,
    empty_input,
    groups_of_any_size,
    can_be_placed,
    differentiable_by_contract,
    value_agrees_with_score,
    value_has_a_gradient,
)


def _differentiable(subject: RewardSubject) -> DifferentiableReward:
    reward = subject.asked.reward
    if not isinstance(reward, DifferentiableReward):
        raise NotOwed("it has no gradient")
    return reward


def _same(expected: Sequence[float], scores: Sequence[float], when: str) -> None:
    for i, (one, two) in enumerate(zip(expected, scores, strict=True)):
        both_absent = math.isnan(one) and math.isnan(two)
        if not both_absent and not math.isclose(one, two, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise Broken(f"{when} {two:g} of sample {i} instead of {one:g}")


def _changes(samples: Sequence[Sample]) -> Mapping[str, list[Sample]]:
    """The samples with one thing changed, by the name under which a reward may read it."""

    def rows(**values: Any) -> list[Sample]:
        return [attrs.evolve(sample, row=attrs.evolve(sample.row, **values)) for sample in samples]

    columns = sorted({name for sample in samples for name in sample.row.metadata})
    changed = {
        "media": [attrs.evolve(sample, media=1 - sample.media) for sample in samples],
        "prompt": rows(prompt=OTHER_WORDS),
        "negative_prompt": rows(negative_prompt=OTHER_WORDS),
        "slot": [attrs.evolve(sample, slot=sample.slot + 7) for sample in samples],
        "replica": [attrs.evolve(sample, replica=len(samples) - sample.replica) for sample in samples],
    }
    for name in columns:
        changed[name] = [
            attrs.evolve(s, row=attrs.evolve(s.row, metadata={k: v for k, v in s.row.metadata.items() if k != name}))
            for s in samples
        ]
    return changed


def _settings() -> Mapping[str, Any]:
    return {
        "torch's random numbers": torch.get_rng_state().tolist(),
        "numpy's random numbers": str(np.random.get_state()),
        "Python's random numbers": random.getstate(),
        "torch's default dtype": torch.get_default_dtype(),
        "the number of torch's threads": torch.get_num_threads(),
        "whether torch is deterministic": torch.are_deterministic_algorithms_enabled(),
        "whether gradients are recorded": torch.is_grad_enabled(),
    }
