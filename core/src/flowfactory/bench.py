"""Where a run's time goes: some epochs of a spec, measured.

The epochs are those of a real run, in a folder that is thrown away; nothing is evaluated and no sample is written.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from flowfactory import loop
from flowfactory.plan import Plan, make_plan
from flowfactory.registry import Registry
from flowfactory.ui import Ui


@attrs.frozen
class Bench:
    """What was measured, per epoch.

    phases: seconds by phase; phases overlap nowhere. network: seconds of them inside the networks.
    samples: made per epoch. forward, trained: samples that passed the network without and with a backward pass.
    peak_rss: bytes of main memory. peak_device: bytes of GPU memory, 0 without one.
    """

    epochs: int
    phases: Mapping[str, float]
    network: float
    samples: int
    forward: float
    trained: float
    peak_rss: int
    peak_device: int

    @property
    def seconds(self) -> float:
        """Seconds of an epoch."""
        return sum(self.phases.values())

    def as_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        return attrs.asdict(self) | {
            "seconds": self.seconds,
            "samples_per_second": self.samples / self.seconds,
            "network_share": self.network / self.seconds,
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: phase, seconds, share of the epoch."""
        slowest_first = sorted(self.phases.items(), key=lambda item: -item[1])
        lines = [*slowest_first, ("epoch", self.seconds), ("of it in the network", self.network)]
        return [(name, f"{value:.3f}", f"{100 * value / self.seconds:.1f} %") for name, value in lines]

    def words(self) -> list[str]:
        """The rest, a line each."""
        forward, trained = self.forward / self.samples, self.trained / self.samples
        device = f", {self.peak_device / 2**30:.2f} GiB on the GPU" if self.peak_device else ""
        return [
            f"{self.samples / self.seconds:.2f} samples/s, {self.samples} samples an epoch",
            f"{forward:g} forward passes and {trained:g} with a backward pass per sample",
            f"peak memory {self.peak_rss / 2**30:.2f} GiB{device}",
        ]


def bench(plan: Plan, registry: Registry, ui: Ui, warmup: int, epochs: int) -> Bench:
    """Run `warmup` epochs that do not count and then `epochs` that do, and take their means."""
    spec = attrs.evolve(
        plan.spec,
        run=attrs.evolve(plan.spec.run, epochs=warmup + epochs, save_samples=0),
        eval=attrs.evolve(plan.spec.eval, every=0),
        checkpoint=attrs.evolve(plan.spec.checkpoint, every=0),
        track=attrs.evolve(plan.spec.track, to=()),
    )
    with tempfile.TemporaryDirectory() as folder:
        loop.run(make_plan(spec, registry, plan.world), registry, Path(folder), ui)
        lines = [json.loads(line) for line in (Path(folder) / loop.METRICS).read_text(encoding="utf-8").splitlines()]
    counted = [line for line in lines if line["epoch"] > warmup]
    return Bench(
        epochs=epochs,
        phases={name.removeprefix("time/"): _mean(counted, name) for name in counted[0] if name.startswith("time/")},
        network=_mean(counted, "network/seconds"),
        samples=plan["samples"],
        forward=_mean(counted, "network/forward"),
        trained=_mean(counted, "network/trained"),
        peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        peak_device=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    )


def _mean(lines: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(line.get(name, 0.0) for line in lines) / len(lines)
