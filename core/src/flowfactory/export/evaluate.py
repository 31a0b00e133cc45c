"""What any rewards say of trained weights and of their base, on any prompts, from the same noise."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from flowfactory.components.resolved import Components
from flowfactory.contracts.types import Row, Sample
from flowfactory.errors import RunError
from flowfactory.export import comparison, pair
from flowfactory.export.comparison import Compared
from flowfactory.export.pair import Pair, Place
from flowfactory.export.sample import BASE, SHEET, TRAINED
from flowfactory.metrics.display import Display
from flowfactory.policy.finite import check_samples
from flowfactory.processes.distributed import DTYPES
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Judge
from flowfactory.rewards.session import Scored, Session
from flowfactory.runs import files
from flowfactory.runs.files import replacing, writing
from flowfactory.runs.media import before_after, save_samples
from flowfactory.sampling.source import chunks
from flowfactory.spec.tables import RewardEntry, Spec

log = logging.getLogger("flowfactory")

TABLE, NUMBERS, SCORES = "table.md", "evaluation.json", "scores.jsonl"


@attrs.frozen(eq=False)
class Asked:
    """What is asked: which rows, how often each, from which noise.

    steps: of sampling; as many as in evaluations when absent. keep: how many rows' samples are written as pictures.
    what: of which weights, in words.
    """

    rows: Sequence[Row]
    count: int
    seed: int
    steps: int | None
    keep: int
    what: str


@attrs.frozen(eq=False)
class Evaluated:
    """The scores of base and trained weights, compared. steps: that samples took."""

    asked: Asked
    steps: int
    rows: Sequence[Compared]

    def as_json(self) -> dict[str, object]:
        """For programs."""
        facts: dict[str, object] = {"prompts": len(self.asked.rows), "count": self.asked.count, "seed": self.asked.seed}
        facts |= {"steps": self.steps, "weights": self.asked.what}
        return facts | {"interval": comparison.METHOD, "rewards": {row.label: row.as_json() for row in self.rows}}

    def markdown(self) -> str:
        """A table to paste."""
        each = "1 sample" if self.asked.count == 1 else f"{self.asked.count} samples"
        prompts = "1 prompt" if len(self.asked.rows) == 1 else f"{len(self.asked.rows)} prompts"
        made = f"{prompts}, {each} of each, {self.steps} steps, noise of seed {self.asked.seed}"
        note = f"{self.asked.what}: {made}, the same for both. In brackets: {comparison.METHOD}."
        if lost := [f"`{row.label}` for {row.failed}" for row in self.rows if row.failed]:
            note += f" Left out, since the reward failed: {', '.join(lost)}."
        return comparison.markdown(self.rows, note)


def evaluate(
    place: Place,
    spec: Spec,
    components: Components,
    entries: Sequence[RewardEntry],
    display: Display,
    asked: Asked,
    folder: Path,
) -> Evaluated:
    """Sample every row with the base and with trained weights, score both, and write what came of it into `folder`.

    A reward that compares the samples of a group is shown those of a prompt by both, together.

    Raises:
        ValueError, AssertionError: the model cannot be asked for these rows, or the weights do not fit.
        RunError: a reward failed past what its table allows, samples are not finite, or `folder` cannot be written.
    """
    judge = Judge(entries, components.rewards, {})
    with display.phase("reaching the rewards"):
        judge.reach()
    loaded = pair.load(place, spec, components, asked.rows, asked.steps, display)
    with display.phase("loading the rewards"):
        judge.load(loaded.processes.device, DTYPES[spec.run.precision])
    shown: list[Sample] = []
    with (
        display.phase("evaluating", 2 * asked.count * len(asked.rows), "samples") as bar,
        judge.session({"": len(asked.rows)}) as scoring,
    ):
        for unit in _units(loaded, judge, asked):
            scoring.submit(unit)
            shown += unit[: max(0, 2 * asked.count * asked.keep - len(shown))]
            bar.advance(len(unit))
            _see(scoring)
        scored = scoring.finish()
        _see(scoring)
    done = Evaluated(asked, loaded.steps, _compared(scored, asked))
    with writing(folder), replacing(folder) as partial:
        _write(partial, done, scored, shown)
    return done


def _see(scoring: Session) -> None:
    if scoring.aborting is not None:
        raise RewardError(scoring.aborting)


def _units(loaded: Pair, judge: Judge, asked: Asked) -> Iterator[list[Sample]]:
    """Some rows at a time, and of each row the samples of the base, then those of the trained weights."""
    count = asked.count
    for rows in chunks(range(len(asked.rows)), max(1, loaded.micro_batch // count)):
        numbers = range(rows[0] * count, (rows[-1] + 1) * count)
        both: list[list[Sample]] = []
        for weights, shift in ((pair.BASE, 0), (pair.TRAINED, count)):
            own: list[Sample] = []
            for made in loaded.make(weights, numbers, count, asked.seed):
                finite = bool(made.latents.isfinite().all()), bool(made.media.isfinite().all())
                check_samples(loaded.processes, "the evaluation", *finite, trained=weights == pair.TRAINED)
                places = [(number // count, shift + number % count) for number in made.numbers]
                own += judge.samples(made.rows, places, made.media, made.latents, made.conditions)
            both.append(own)
        yield [s for start in range(0, len(numbers), count) for own in both for s in own[start : start + count]]


def _compared(scored: Scored, asked: Asked) -> list[Compared]:
    found = []
    for label, column in {**scored.values, **scored.parts}.items():
        own = label.partition("/")[0]
        lost = int(_by_row(scored.failed[own], asked).any((1, 2)).sum())
        base, trained = np.moveaxis(_by_row(column, asked), 1, 0)
        if (row := comparison.compared(label, base, trained, lost)) is not None:
            found.append(row)
        elif own == label:
            log.warning("reward %r applies to none of these prompts", label)
    for failure in scored.failures[:1]:
        log.warning("%s", failure.why)
    if not found:
        raise RunError("none of the rewards applies to any of these prompts, so there is nothing to compare")
    return found


def _by_row(column: Tensor, asked: Asked) -> Any:
    """A column of all samples as `(P, 2, count)`."""
    return column.reshape(len(asked.rows), 2, asked.count).numpy()


def _write(folder: Path, done: Evaluated, scored: Scored, shown: Sequence[Sample]) -> None:
    columns = {**scored.values, **scored.parts}
    (folder / TABLE).write_text(done.markdown() + "\n", encoding="utf-8")
    (folder / NUMBERS).write_text(json.dumps(done.as_json(), indent=2) + "\n", encoding="utf-8")
    asked = done.asked
    with (folder / SCORES).open("w", encoding="utf-8") as table:
        for number, row in enumerate(asked.rows):
            both = {label: _by_row(column, asked)[number] for label, column in columns.items()}
            line: dict[str, object] = {"prompt": row.prompt}
            for side, name in enumerate((BASE, TRAINED)):
                line[name] = {label: [None if x != x else float(x) for x in one[side]] for label, one in both.items()}
            table.write(files.line(line))
    numbers = torch.arange(len(shown)).reshape(-1, 2, asked.count)
    for side, name in enumerate((BASE, TRAINED)):
        chosen = numbers[:, side].flatten().tolist()
        samples = [attrs.evolve(shown[i], slot=order, replica=order % asked.count) for order, i in enumerate(chosen)]
        listed = {label: [float(column[i]) for i in chosen] for label, column in columns.items()}
        save_samples(folder / name, samples, listed, [scored.words[i] for i in chosen])
    if shown:
        sheet = before_after(folder / BASE, folder / TRAINED)
        assert sheet is not None
        sheet.save(folder / SHEET)
