"""Where a run's time and memory go: some epochs of a spec, measured.

The epochs are those of a real run, in a folder that is thrown away; nothing is evaluated and no sample is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from flowfactory.components.resolved import Components
from flowfactory.conditions.cache import Source as Encoded
from flowfactory.conditions.cache import row_key
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.types import Conditions, Row
from flowfactory.discovery.entries import Source
from flowfactory.metrics.clock import Clock
from flowfactory.metrics.display import Display
from flowfactory.plan.estimate import estimate
from flowfactory.plan.plan import Plan, make_plan
from flowfactory.plan.working import readable
from flowfactory.processes.distributed import DTYPES, Processes
from flowfactory.processes.stop import listening
from flowfactory.runs.checkpoint import Progress
from flowfactory.spec.tables import Spec
from flowfactory.training.assembly import assemble
from flowfactory.training.encoding import load_model
from flowfactory.training.flops import Flops, measure
from flowfactory.training.optimise import optimise


@attrs.frozen
class Bench:
    """What was measured, per epoch.

    phases: seconds by phase; phases overlap nowhere. network: seconds of each inside the networks.
    warmup: seconds of each epoch before them, the first of which waits for what is compiled and chosen only once.
    samples: made per epoch. forward, trained: samples that passed the network without and with a backward pass.
    flops: what such passes take, and what the machine can do.
    memory: bytes at the peak of each phase, as `Gauge` has them. estimated: the same, as planned.
    peak_rss: bytes of main memory, 0 with a GPU. peak_device: bytes of GPU memory, 0 without one.
    training: what trainers say, `train/…`; means over the epochs.
    """

    epochs: int
    phases: Mapping[str, float]
    network: Mapping[str, float]
    warmup: Sequence[float]
    samples: int
    forward: float
    trained: float
    flops: Flops | None
    memory: Mapping[str, int]
    estimated: Mapping[str, int]
    peak_rss: int
    peak_device: int
    training: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Seconds of an epoch."""
        return sum(self.phases.values())

    @property
    def utilisation(self) -> float | None:
        """Share of the machine's matrix products that the model's own are, while the network computes."""
        if self.flops is None:
            return None
        work = self.forward * self.flops.forward + self.trained * self.flops.trained
        return work / (sum(self.network.values()) * self.flops.ceiling)

    def as_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        return attrs.asdict(self) | {
            "seconds": self.seconds,
            "samples_per_second": self.samples / self.seconds,
            "network_share": sum(self.network.values()) / self.seconds,
            "utilisation": self.utilisation,
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """A table: phase, seconds, share of the epoch, share of it inside the networks."""
        slowest_first = sorted(self.phases.items(), key=lambda item: -item[1])
        inside = {**self.network, "epoch": sum(self.network.values())}
        return [
            (name, f"{value:.3f}", _percent(value / self.seconds), _percent(inside.get(name, 0.0) / value))
            for name, value in [*slowest_first, ("epoch", self.seconds)]
        ]

    def words(self) -> list[str]:
        """The rest, a line each."""
        forward, trained = self.forward / self.samples, self.trained / self.samples
        lines = [
            f"{self.samples / self.seconds:.2f} samples/s, {self.samples} samples an epoch",
            f"{forward:g} forward passes and {trained:g} with a backward pass per sample",
        ]
        if self.warmup:
            before = ", ".join(f"{seconds:.3f} s" for seconds in self.warmup)
            lines.append(f"warm-up, which does not count: {before}")
        if self.flops is not None and self.utilisation is not None:
            ceiling = f"{self.flops.ceiling / 1e12:.3g} TFLOP/s of a matrix product here"
            lines.append(f"in the network {100 * self.utilisation:.1f} % of the {ceiling}")
        where = "on the GPU" if self.peak_device else "of main memory"
        lines.append(f"peak {readable(self.peak_device or self.peak_rss)} {where}; planned and measured by phase:")
        return lines + [
            f"  {phase}: {readable(self.estimated.get(phase))}, {readable(size)}" for phase, size in self.memory.items()
        ]


class Encoding:
    """The conditions of rows where nothing is kept: the encoders stay, and each row is encoded once in every epoch.

    That is the least that encoding on the way costs: who encodes each batch for itself does it as often or oftener.
    """

    def __init__(self, adapter: Adapter[Any]) -> None:
        self._adapter = adapter
        self._known: dict[str, Conditions] = {}

    def __getitem__(self, row: Row) -> Conditions:
        key = row_key(row)
        if key not in self._known:
            with torch.no_grad():
                self._known[key] = self._adapter.encode([row])
        return self._known[key]

    def forget(self) -> None:
        """An epoch is over."""
        self._known.clear()


def encode_always(
    spec: Spec,
    adapter: Adapter[Any],
    source: Source,
    rows: Sequence[Row],
    device: torch.device,
    display: Display,
    clock: Clock,
    asking: Any = None,
    first: Any = None,
) -> Encoding:
    """In the place of `load_model`: nothing is cached and no encoder dropped."""
    with display.phase("loading the model"), clock("load"):
        adapter.load(device, DTYPES[spec.run.precision])
    return Encoding(adapter)


def bench(
    plan: Plan,
    components: Components,
    display: Display,
    warmup: int,
    epochs: int,
    load: Callable[..., Encoded] = load_model,
) -> Bench:
    """Run `warmup` epochs that do not count and then `epochs` that do, and take their means.

    Args:
        load: see `assemble`; `encode_always` is without a condition cache.
    """
    spec = attrs.evolve(
        plan.spec,
        run=attrs.evolve(plan.spec.run, epochs=warmup + epochs, save_samples=0),
        eval=attrs.evolve(plan.spec.eval, every=0),
    )
    plan = make_plan(spec, plan.versions, plan.world)
    lines: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, listening() as stop:
        processes = Processes(spec.run.precision, spec.memory)
        parts = assemble(plan, components, Path(name), display, processes, load)
        progress = Progress()
        clock, stopwatch = parts.instruments.clock, parts.instruments.stopwatch
        flops = measure(parts.learner)
        encode = clock.read()
        for epoch in range(1, warmup + epochs + 1):
            parts.encode(epoch)
            made = parts.source.collect(epoch, stop)
            progress, metrics = optimise(parts.learner, progress, epoch, made, stop)
            lines.append(metrics | clock.read() | stopwatch.read())
            if isinstance(parts.learner.conditions.source, Encoding):
                parts.learner.conditions.source.forget()
    counted = lines[warmup:]
    peaks = {name: max(line.get(name, 0.0) for line in (encode, *lines)) for line in (encode, *lines) for name in line}
    memory = {name.removeprefix("memory/"): int(size) for name, size in peaks.items() if name.startswith("memory/")}
    cuda = parts.processes.device.type == "cuda"
    peak = max(memory.values())
    return Bench(
        epochs=epochs,
        phases=_phases(counted, "time/"),
        network=_phases(counted, "network/seconds/"),
        warmup=[sum(_phases([line], "time/").values()) for line in lines[:warmup]],
        samples=plan["samples"],
        forward=_mean(counted, "network/forward"),
        trained=_mean(counted, "network/trained"),
        flops=flops,
        memory=memory,
        estimated={need.name: need.bytes or 0 for need in estimate(spec, plan.world).phases},
        peak_rss=0 if cuda else peak + clock.gauge.start,
        peak_device=peak if cuda else 0,
        training={name: _mean(counted, name) for name in counted[0] if name.startswith("train/")},
    )


def _phases(lines: Sequence[Mapping[str, float]], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): _mean(lines, name) for name in lines[0] if name.startswith(prefix)}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _mean(lines: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(line.get(name, 0.0) for line in lines) / len(lines)
