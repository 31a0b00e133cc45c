"""Samples of any prompts by a run's weights, beside those of its base from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file

from flowfactory.components.resolved import Components
from flowfactory.conditions.cache import ConditionStore
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.types import Row, Sample
from flowfactory.errors import RunError, shown
from flowfactory.export.export import place_for
from flowfactory.metrics.clock import Clock
from flowfactory.metrics.display import Display, Phase
from flowfactory.policy.finite import all_finite
from flowfactory.policy.policy import ModelPolicy
from flowfactory.processes.distributed import DTYPES, Processes
from flowfactory.runs import archive
from flowfactory.runs.files import replacing, writing
from flowfactory.runs.media import before_after, save_samples
from flowfactory.sampling.rollout import draw_noise, rollout
from flowfactory.sampling.source import chunks
from flowfactory.spec.tables import Full, Spec
from flowfactory.training.encoding import load_model

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
    processes = Processes(spec.run.precision)
    adapter = components.adapter(spec.model.spec)
    try:
        with archive.reading(saved.parent):
            tensors = all_finite(load_file(saved), saved)
            clock = Clock(processes.device)
            cache = load_model(spec, adapter, components.source, rows, processes.device, display, clock)
            own = place_for(spec, adapter, saved)
        size, dtype = spec.eval.size or spec.sampling.size, DTYPES[spec.run.precision]
        drawing = Drawing(
            ModelPolicy(adapter, own, processes, dtype, spec.sampling.guidance, size),
            components.scheduler(spec.scheduler.spec),
            ConditionStore(cache, rows, adapter.collate),
            processes.device,
            steps or spec.eval.steps or spec.sampling.steps,
            spec.eval.micro_batch or spec.sampling.micro_batch,
        )
        with display.phase("sampling", 2 * count * len(rows), "samples") as bar:
            with nullcontext() if isinstance(spec.tuning, Full) else own.using("reference"):
                before = drawing.samples(count, seed, bar)
            own.restore("current", tensors)
            after = drawing.samples(count, seed, bar)
    except (ValueError, AssertionError) as error:
        raise RunError(f"{shown(run)} cannot be sampled from: {error or repr(error)}") from error
    with writing(folder), replacing(folder) as partial:
        save_samples(partial / BASE, before, {})
        save_samples(partial / TRAINED, after, {})
        sheet = before_after(partial / BASE, partial / TRAINED)
        assert sheet is not None
        sheet.save(partial / SHEET)
    return folder / SHEET


@attrs.frozen(eq=False)
class Drawing:
    """What rows are sampled with; its policy makes samples of one size."""

    policy: ModelPolicy
    scheduler: Scheduler[Any]
    conditions: ConditionStore
    device: torch.device
    steps: int
    micro_batch: int

    @torch.no_grad()
    def samples(self, count: int, seed: int, bar: Phase) -> list[Sample]:
        """`count` samples of each row, deterministically, each from noise of its own."""
        made: list[Sample] = []
        sigmas, wanted = self.policy.sigmas(self.steps), range(count * len(self.conditions.rows))
        for numbers in chunks(wanted, self.micro_batch):
            keys = [(seed, "sample", number // count, number % count) for number in numbers]
            noise = draw_noise(keys, keys, self.policy.latent_shape(), 0).to(self.device)
            conditions = self.conditions.batch([number // count for number in numbers], self.device)
            final = rollout(self.policy, self.scheduler, sigmas, (), noise, conditions, torch.float32).final
            media = self.policy.decode(final)
            rows = [self.conditions.rows[number // count] for number in numbers]
            made += map(Sample, rows, media, numbers, (number % count for number in numbers))
            bar.advance(len(numbers))
        return made
