"""CPU seconds of an epoch by its parts, in one small geometry; the numbers are on the page of performance.

    OMP_NUM_THREADS=1 python tests/benchmarks/epoch.py [--epochs N] [--warmup N] [TRAINER …]

The smallest FLUX at 128 x 128, 4 prompts of 8 samples, 4 steps of which 3 are trained, LoRA of rank 8, two updates. A
trainer may have changes behind it, `grpo-guard,trainer.old=replayed`: what is compared takes turns, epoch by epoch, so
that whatever else the machine does meanwhile is shared. With `memory.compile=true` the second epoch compiles once more,
so two are of warm-up.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from accelerate.state import AcceleratorState
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.running import resolved
from flowfactory.discovery.registry import Registry
from flowfactory.plan.plan import make_plan
from flowfactory.processes.distributed import Processes
from flowfactory.processes.stop import listening
from flowfactory.runs.checkpoint import Progress
from flowfactory.spec.structure import load_spec
from flowfactory.training.assembly import Parts, assemble
from flowfactory.training.optimise import optimise
from flowfactory_plugin_flux.flux import Flux

SPEC = """
run = {{ name = "epoch", epochs = 1, save_samples = 0 }}
model = {{ name = "flux", path = "{folder}/checkpoint", max_sequence_length = 16 }}
lora = {{ rank = 8, alpha = 16 }}
data = {{ prompts = "prompts.txt" }}
sampling = {{ size = 128, steps = 4, prompts = 4, group = 8, micro_batch = 8 }}
scheduler = {scheduler}
trainer = {{ name = "{trainer}" }}
optimizer = {{ lr = 1e-4, updates = 2, micro_batch = 8 }}
memory = {{ cache = "{folder}/cache" }}
eval = {{ every = 0 }}

[[reward]]
name = "jpeg-compressibility"
"""
STOCHASTIC, DETERMINISTIC = '{ name = "flow-sde", eta = 0.7 }', '{ name = "ode" }'
TRAINERS = ("grpo", "grpo-guard", "grpo-guard,trainer.old=replayed", "nft", "awm")


def parts_of(folder: Path, trainer: str) -> Parts:
    """A run, loaded."""
    name, *changes = trainer.split(",")
    registry = Registry()
    scheduler = DETERMINISTIC if name in ("nft", "awm") else STOCHASTIC
    home = folder / trainer
    home.mkdir()
    (home / "prompts.txt").write_text("a cat\na dog\na bird\na fish\n")
    (home / "spec.toml").write_text(SPEC.format(folder=folder, trainer=name, scheduler=scheduler))
    spec = load_spec(home / "spec.toml", registry, changes)
    plan = make_plan(spec, registry.versions())
    return assemble(plan, resolved(spec, registry), home / "run", Ui(quiet=True), Processes("fp32"))


@contextmanager
def counted(into: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU seconds of a block."""
    start = time.process_time()
    yield
    into[name] = into.get(name, 0.0) + time.process_time() - start


def epoch(parts: Parts, progress: Progress, number: int) -> tuple[Progress, Mapping[str, float]]:
    """One epoch, its CPU seconds by part, and its passes."""
    seconds: dict[str, float] = {}
    with listening() as stop:
        with counted(seconds, "sample, decode, score"):
            parts.encode(number)
            made = parts.source.collect(number, stop)
        with counted(seconds, "terms, updates"):
            progress, metrics = optimise(parts.learner, progress, number, made, stop)
    passes = {"passes": metrics["network/forward"] + metrics["network/trained"]}
    return progress, {"CPU seconds": sum(seconds.values()), **seconds, **passes}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trainers", nargs="*", default=TRAINERS)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    own = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as name:
        Flux.tiny(Path(name) / "checkpoint")
        runs, found = {}, {trainer: list[Mapping[str, float]]() for trainer in own.trainers}
        for trainer in own.trainers:
            AcceleratorState._reset_state(True)
            runs[trainer] = parts_of(Path(name), trainer)
        progress = {trainer: Progress() for trainer in own.trainers}
        for number in range(1, own.epochs + own.warmup + 1):
            for trainer, parts in runs.items():
                progress[trainer], line = epoch(parts, progress[trainer], number)
                if number > own.warmup:
                    found[trainer].append(line)
    columns = [*next(iter(found.values()))[0]]
    print(" | ".join(["trainer", *columns]))
    for trainer, lines in found.items():
        print(" | ".join([trainer, *(f"{median(line[column] for line in lines):.4g}" for column in columns)]))


if __name__ == "__main__":
    main()
