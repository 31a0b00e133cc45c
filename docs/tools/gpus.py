"""Which GPU carries which example, on a page and in them: `python docs/tools/gpus.py docs/gpus.md`. Imports torch.

Everything is an estimate of `plan`: nothing of it is run, and nothing is downloaded (see `published`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import published
from flowfactory.cli.verbs.examples import GPU, Example, installed
from flowfactory.discovery.registry import Registry
from flowfactory.plan.estimate import estimate
from flowfactory.spec.structure import load_spec
from tables import row

CARDS = {
    16: "RTX 5080, RTX A4000",
    24: "RTX 4090, L4",
    32: "RTX 5090",
    48: "L40S, RTX 6000 Ada",
    80: "A100, H100",
    131: "H200",
}
"""GiB of memory, and what has them."""

ROOM = 0.9
"""The share of a card that a run may plan with: the rest is CUDA's own, and what the estimate misses."""

LEAST = ("memory.gradient_checkpointing=true", "sampling.micro_batch=1", "optimizer.micro_batch=1")
GIB = 1 << 30
INTRODUCTION = """
# Which GPU for which example

**These are estimates, not measurements.** They are what `flowfactory plan` says of the examples of all plugins, for one
process. Of two geometries of FLUX.1-dev and Qwen-Image, an H200 took within 3 % of what was planned
([On a GPU](performance.md#on-a-gpu)). Weights are counted from configs that were transcribed by hand; nobody has
compared them with the hub's yet.
Activations follow from a formula that is too low by up to a factor of 1.8 where it was measured
([how good it is](performance.md#memory)). What rewards' networks take is in none of the numbers, nor what
HunyuanVideo's VAE computes with.

*encode*, *sample*, *decode* and *update* are the phases of a run, in GiB, as the example stands. While prompts are
encoded, all parts of the model are there, so *encode* is also about the size of its download. *card* is the smallest
of the table below in which the largest phase takes no more than nine tenths. *least* is the same with
`[memory] gradient_checkpointing` and with one sample at a time (`micro_batch = 1` in `[sampling]` and `[optimizer]`),
which change results by rounding only. `[memory] offload`, `[optimizer] bits = 8` and `[model] quantize` save more, and
`[memory] shard` divides weights among processes: see [Performance](performance.md#memory).

For a spec of your own: `flowfactory plan spec.toml`; with `--exact` it measures activations, without any weights.
Examples on the checkpoint of `shapes` need no GPU and are left out.
"""


def phases(example: Example, sets: Sequence[str] = ()) -> dict[str, float]:
    """GiB of each phase."""
    needed = estimate(load_spec(example.file, Registry(), sets), known=published.parts(example.base))
    return {need.name: need.bytes / GIB for need in needed.phases if need.bytes is not None}


def card(found: dict[str, float]) -> str:
    """The smallest that carries these phases."""
    fits = [size for size in CARDS if max(found.values()) <= size * ROOM]
    return f"{fits[0]} GiB" if fits else "more than one"


def note(example: Example) -> str:
    """What an example says of it, which `flowfactory examples` shows."""
    if ":" in example.base:
        return "# GPU: none needed"
    usual, least = card(phases(example)), card(phases(example, LEAST))
    return f"# GPU: {usual}" + (f", or {least} with less at a time" if least != usual else "")


def noted(example: Example) -> str:
    """The text of an example with its note, after what its first lines say."""
    told = [line for line in example.file.read_text(encoding="utf-8").splitlines() if not GPU.match(line)]
    first = next((number for number, line in enumerate(told) if not line.startswith("#")), len(told))
    return "\n".join([*told[:first], note(example), *told[first:]]) + "\n"


def lines() -> Iterator[str]:
    """The page."""
    yield "<!-- Written by `python docs/tools/gpus.py docs/gpus.md`; change it there. -->"
    yield INTRODUCTION
    yield from ("| GiB | such as |", "|---|---|")
    yield from (row(str(size), names) for size, names in CARDS.items())
    examples = [example for example in installed() if ":" not in example.base]
    for base in dict.fromkeys(example.base for example in examples):
        yield from ("", f"## `{base}`", "")
        yield from ("| example | encode | sample | decode | update | card | least |", "|---|---|---|---|---|---|---|")
        for example in examples:
            if example.base == base:
                found = phases(example)
                sizes = [f"{found[name]:.1f}" for name in ("encode", "sample", "decode", "update")]
                yield row(f"`{example.name}`", *sizes, card(found), card(phases(example, LEAST)))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("\n".join(lines()) + "\n", encoding="utf-8")
    for example in installed():
        example.file.write_text(noted(example), encoding="utf-8")
