"""What cached conditions cost: bytes and reading time per prompt, and what a second start still encodes.

    python tests/benchmarks/conditions.py [--prompts 64] [--batch 8] [--folder FOLDER] [SPEC]

With a spec: its model and its prompts. Without one: random conditions of the sizes FLUX.1 dev's are in bfloat16, with
the negative prompt that all rows share.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from flowfactory.conditions.cache import ConditionCache, ConditionStore
from flowfactory.conditions.identity import encoder_identity
from flowfactory.contracts.digest import seed_of
from flowfactory.contracts.types import Conditions, Row
from flowfactory.data.rows import load_rows
from flowfactory.discovery.registry import Registry
from flowfactory.processes.distributed import DTYPES
from flowfactory.spec.structure import load_spec

Encode = Callable[[Sequence[Row]], Conditions]
CPU = torch.device("cpu")


def flux_sized(rows: Sequence[Row]) -> Conditions:
    """Random numbers where T5 and CLIP would have theirs: of the prompt and of the empty negative prompt."""
    conditions = {}
    for call, text in enumerate((rows[0].prompt, "")):
        generator = torch.Generator().manual_seed(seed_of(text))
        conditions[f"encode_prompt.{call}.0"] = torch.randn(1, 512, 4096, generator=generator).bfloat16()
        conditions[f"encode_prompt.{call}.1"] = torch.randn(1, 768, generator=generator).bfloat16()
        conditions[f"encode_prompt.{call}.2:shared"] = torch.zeros(1, 512, 3, dtype=torch.bfloat16)
    return conditions | {"shapes": torch.tensor([[512, 4096, 768, 512, 3] * 2])}


def of_spec(path: Path) -> tuple[list[Row], dict[str, Any], Encode]:
    """The rows of a spec, the identity of its encoders, and the encoders."""
    registry = Registry()
    spec = load_spec(path, registry)
    adapter = registry.target("adapters", spec.model.name)(spec.model.spec)
    identity = encoder_identity(adapter, spec.run.precision, registry.versions())
    adapter.load(CPU, DTYPES[spec.run.precision])
    return load_rows(Path(spec.data.prompts)), identity, adapter.encode


class Counted:
    """An encoder that counts its calls."""

    def __init__(self, encode: Encode) -> None:
        self.calls, self._encode = 0, encode

    def __call__(self, rows: Sequence[Row]) -> Conditions:
        self.calls += 1
        return self._encode(rows)


def collate(parts: Sequence[Conditions]) -> Conditions:
    """Join along the batch."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def start(folder: Path, rows: Sequence[Row], identity: dict[str, Any], encode: Counted) -> ConditionCache:
    """What a run does before training."""
    cache = ConditionCache(folder, identity, rows, print)
    with torch.no_grad():
        cache.fill(encode, lambda count: None)
    return cache


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """The median of several measurements."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def measure(folder: Path, rows: list[Row], identity: dict[str, Any], encode: Encode, batch: int) -> dict[str, str]:
    """Every figure, in words."""
    counted = Counted(encode)
    begun = time.perf_counter()
    cache = start(folder, rows, identity, counted)
    first = time.perf_counter() - begun
    distinct, counted.calls = counted.calls, 0
    begun = time.perf_counter()
    cache = start(folder, rows, identity, counted)
    second = time.perf_counter() - begun
    size = sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
    logical = sum(t.nbytes for row in rows for t in cache[row].values()) / len(rows)
    numbers = random.Random(0).sample(range(len(rows)), min(batch, len(rows)))
    store = ConditionStore(cache, rows, collate)
    look = seconds(lambda: [cache[row] for row in rows]) / len(rows)
    read = seconds(lambda: store.batch(numbers, CPU)) / len(numbers)
    return {
        "distinct prompts": str(distinct),
        "bytes per prompt, as tensors": f"{logical:,.0f}",
        "bytes per prompt, on the disk": f"{size / distinct:,.0f}",
        "first start": f"{first:.2f} s, encoding included",
        "second start": f"{second:.2f} s, checking every shard included",
        "second start, hit rate": f"{1 - counted.calls / distinct:.0%}",
        "reading a prompt": f"{look * 1e6:.0f} us to map, {read * 1e3:.2f} ms to have it in a batch of {len(numbers)}",
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="?", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    rows, identity, encode = [Row(f"prompt {n}") for n in range(given.prompts)], {"encoder": "random"}, flux_sized
    if given.spec:
        rows, identity, encode = of_spec(given.spec)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for name, value in measure(Path(folder), rows, identity, encode, given.batch).items():
            print(f"{name:32}{value}")


if __name__ == "__main__":
    main()
