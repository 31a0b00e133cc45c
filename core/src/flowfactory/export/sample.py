"""Samples of any prompts by a run's weights, beside those of its base from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowfactory.components.resolved import Components
from flowfactory.contracts.types import Row, Sample
from flowfactory.export import pair
from flowfactory.export.pair import Pair
from flowfactory.metrics.display import Display, Phase
from flowfactory.runs.files import replacing, writing
from flowfactory.runs.media import before_after, save_samples
from flowfactory.spec.tables import Spec

SHEET, BASE, TRAINED = "sheet.png", "base", "trained"


def sample(
    run: Path,
    spec: Spec,
    components: Components,
    display: Display,
    rows: Sequence[Row],
    folder: Path,
    saved: Path,
    count: int = 1,
    seed: int = 0,
    steps: int | None = None,
) -> Path:
    """Sample each row `count` times as evaluations do, with the base and with the trained weights.

    Args:
        run: the run's folder. spec: its spec. folder: where to; it takes the place of one that is there.
        saved: the file of the trained weights. seed: of the noise. steps: as many as in evaluations when absent.

    Returns:
        The sheet of both, side by side. Folders `base` and `trained` beside it have every sample at its full size.

    Raises:
        RunError: the model cannot be asked for these rows, or `folder` cannot be written.
    """
    with pair.told(run), pair.of_run(saved, spec) as place:
        loaded = pair.load(place, spec, components, rows, steps, display)
        with display.phase("sampling", 2 * count * len(rows), "samples") as bar:
            before = _samples(loaded, pair.BASE, count, seed, bar)
            after = _samples(loaded, pair.TRAINED, count, seed, bar)
    with writing(folder), replacing(folder) as partial:
        save_samples(partial / BASE, before, {})
        save_samples(partial / TRAINED, after, {})
        sheet = before_after(partial / BASE, partial / TRAINED)
        assert sheet is not None
        sheet.save(partial / SHEET)
    return folder / SHEET


def _samples(loaded: Pair, weights: str, count: int, seed: int, bar: Phase) -> list[Sample]:
    """`count` samples of each row."""
    found: list[Sample] = []
    for made in loaded.make(weights, range(count * len(loaded.conditions.rows)), count, seed):
        found += map(Sample, made.rows, made.media, made.numbers, (number % count for number in made.numbers))
        bar.advance(len(made.numbers))
    return found
