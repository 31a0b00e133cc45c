"""A base and what became of it, in one network: samples of both from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowfactory.components.resolved import Components
from flowfactory.conditions.cache import ConditionStore
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.key import Location
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.types import Conditions, Row
from flowfactory.errors import RunError, shown
from flowfactory.export.saved import place_for
from flowfactory.metrics.clock import Clock
from flowfactory.metrics.display import Display
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy import loras
from flowfactory.policy.finite import all_finite
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import DTYPES, Processes
from flowfactory.runs import archive
from flowfactory.sampling.rollout import draw_noise, rollout
from flowfactory.sampling.source import chunks
from flowfactory.spec.tables import Full, Lora, Spec
from flowfactory.training.encoding import load_model
from flowfactory.training.networks import streaming

BASE, TRAINED = "reference", "current"
"""The sets of weights that a pair has."""

Place = Callable[[Adapter[Any]], Weights]
"""Puts trained weights into a loaded base, which stays there as the set `BASE`."""


@attrs.frozen(eq=False)
class Made:
    """Samples, by their numbers: what was drawn for which rows, and decoded."""

    numbers: Sequence[int]
    rows: Sequence[Row]
    media: Tensor
    latents: Tensor
    conditions: Conditions


@attrs.frozen(eq=False)
class Pair:
    """What rows are sampled with, as evaluations do; its policy makes samples of one size."""

    policy: ModelPolicy
    scheduler: Scheduler[Any]
    conditions: ConditionStore
    processes: Processes
    steps: int
    micro_batch: int

    @torch.no_grad()
    def make(self, weights: str, numbers: range, count: int, seed: int) -> Iterator[Made]:
        """Deterministic samples, each from noise of its own; number `n` is the `n % count`-th of row `n // count`."""
        sigmas, device = self.policy.sigmas(self.steps), self.processes.device
        with self.policy.sampling(weights, exactly=True):
            for some in chunks(numbers, self.micro_batch):
                keys = [(seed, "sample", number // count, number % count) for number in some]
                noise = draw_noise(keys, keys, self.policy.latent_shape(), 0).to(device)
                conditions = self.conditions.batch([number // count for number in some], device)
                final = rollout(self.policy, self.scheduler, sigmas, (), noise, conditions, torch.float32).final
                rows = [self.conditions.rows[number // count] for number in some]
                yield Made(some, rows, self.policy.decode(final), final, conditions)


def load(
    place: Place, spec: Spec, components: Components, rows: Sequence[Row], steps: int | None, display: Display
) -> Pair:
    """Load a base, encode the rows, and put trained weights beside its own.

    Args:
        steps: of sampling; as many as in evaluations when absent.

    Raises:
        ValueError, AssertionError: the model cannot be asked for these rows, or the weights do not fit.
    """
    processes, adapter = Processes(spec.run.precision), components.adapter(spec.model.spec)
    device = processes.device
    streaming(spec, adapter)
    cache = load_model(spec, adapter, components.source, rows, device, display, Clock(device))
    s, size, dtype = spec.sampling, spec.eval.size or spec.sampling.size, DTYPES[spec.run.precision]
    return Pair(
        ModelPolicy(adapter, place(adapter), processes, dtype, s.guidance, size, merged=s.merged),
        components.scheduler(spec.scheduler.spec),
        ConditionStore(cache, rows, adapter.collate),
        processes,
        steps or spec.eval.steps or spec.sampling.steps,
        spec.eval.micro_batch or spec.sampling.micro_batch,
    )


@contextmanager
def of_run(saved: Path, spec: Spec) -> Iterator[Place]:
    """The weights in a file of a run's checkpoint, which stays while they are in use.

    Raises:
        RunError: they are not finite.
    """

    def place(adapter: Adapter[Any]) -> Weights:
        own = place_for(spec, adapter, saved, [BASE] if isinstance(spec.tuning, Full) else [])
        own.restore(TRAINED, tensors)
        return own

    with archive.reading(saved.parent):
        tensors = all_finite(load_file(saved), saved)
        yield place


@contextmanager
def of_export(folder: Path, spec: Spec) -> Iterator[Place]:
    """The weights of an export, read as `[lora] from` and `[full] from` read them."""

    def place(adapter: Adapter[Any]) -> Weights:
        networks, pipe = adapter.networks(), adapter.pipe if isinstance(adapter, PipelineAdapter) else None
        given = loras.read(str(folder), networks, pipe)
        from_, seed = Location(str(folder)), spec.run.seed
        if given.whole:
            return Weights(networks, Full(from_=from_, reference="base"), [], [BASE], seed, start=given)
        return Weights(networks, Lora(from_=from_), [], [], seed, start=given)

    yield place


@contextmanager
def told(place: Path) -> Iterator[None]:
    """What is wrong with a model, its weights or its rows, in words.

    Raises:
        RunError: naming the run or the export.
    """
    try:
        yield
    except (ValueError, AssertionError) as error:
        raise RunError(f"{shown(place)} cannot be sampled from: {error or repr(error)}") from error
