"""What the adapters of one family save over the one for any pipeline: calls of the network, and time, in one run.

    python tests/benchmarks/overrides.py [--repeats 9] [NAME ...]

Each adapter's own tiny checkpoint, on a CPU, eight samples in a batch. A call of a tiny network costs little, so the
times show what surrounds it; with a large network the calls decide.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from diffusers.utils import logging as diffusers_logging
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions, Row
from flowfactory.discovery.registry import Registry
from flowfactory.models.pipeline import PipelineAdapter
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

BATCH = 8
IMAGE, VIDEO = Size(32, 48), Size(32, 48, 5)
SHAPES = ((48, 32), (20, 40))


@attrs.frozen(kw_only=True)
class Case:
    """A batch to compare: one adapter, whether its rows and noise levels differ, and its guidance."""

    name: str
    words: str
    rows: bool = False
    levels: bool = False
    guidance: float = 1.0
    keys: dict[str, Any] = attrs.field(factory=dict)
    tiny: dict[str, Any] = attrs.field(factory=dict)
    size: Size = IMAGE
    shapes: Sequence[tuple[int, int]] = ()


def cases() -> Iterator[Case]:
    """Batches as they occur: of a group, of several prompts, of terms with noise levels of their own."""
    tokens, both = {"max_sequence_length": 32}, {"rows": True, "levels": True}
    for name, shapes in (("flux", ()), ("flux-kontext", SHAPES)):
        yield Case(name=name, words="one noise level", rows=True, keys=tokens, shapes=shapes)
        yield Case(name=name, words="8 noise levels", **both, keys=tokens, shapes=shapes)
        guided = tokens | {"true_cfg": 4.0}
        yield Case(name=name, words="8 noise levels, `true_cfg`", **both, keys=guided, shapes=shapes)
    for name, shapes in (("qwen-image", ()), ("qwen-image-edit", SHAPES)):
        yield Case(name=name, words="one prompt, one noise level", shapes=shapes)
        yield Case(name=name, words="8 prompts, 8 noise levels", **both, shapes=shapes)
        yield Case(name=name, words="8 prompts, 8 noise levels, guidance", **both, guidance=4.0, shapes=shapes)
    for words, tiny in (("2.1", {}), ("2.2", {"experts": 2}), ("TI2V-5B", {"expand_timesteps": True})):
        for name, keys, shapes in (("wan", tokens, ()), ("wan-i2v", {}, SHAPES)):
            if name == "wan" or words != "TI2V-5B":
                video = {"keys": keys, "tiny": tiny, "size": VIDEO, "shapes": shapes, "guidance": 5.0, "rows": True}
                yield Case(name=name, words=f"{words}: one noise level, guidance", **video)
                yield Case(name=name, words=f"{words}: 8 noise levels, guidance", levels=True, **video)


def load(case: Case, folder: Path) -> tuple[PipelineAdapter[Any], Conditions]:
    """The adapter and the conditions of its batch."""
    registry = Registry()
    target, keys = registry.target("adapters", case.name), dict(case.keys)
    adapter = target(
        registry.find("adapters", case.name).provides.spec(path=str(target.tiny(folder, **case.tiny)), **keys)
    )
    adapter.load(torch.device("cpu"), torch.float32)
    rows = []
    for i in range(BATCH):
        images: tuple[Path, ...] = ()
        if case.shapes:
            images = (folder / f"{i}.png",)
            shape = case.shapes[i % len(case.shapes) if case.rows else 0]
            Image.linear_gradient("L").convert("RGB").resize(shape).save(images[0])
        rows.append(Row("a red circle" + " too" * (i if case.rows else 0), "blurry", images))
    return adapter, adapter.encode(rows)


@torch.no_grad()
def compare(case: Case, repeats: int) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        adapter, conditions = load(case, Path(folder))
        x = torch.randn(BATCH, *adapter.latent_shape(case.size), generator=torch.Generator().manual_seed(0))
        sigma = torch.linspace(0.95, 0.2, BATCH) if case.levels else torch.full((BATCH,), 0.6)
        calls: list[int] = []
        for network in adapter._networks.values():
            network.register_forward_pre_hook(lambda *_: calls.append(1))
        asked = (x, sigma, conditions, case.guidance, case.size)

        def by_pipeline() -> Tensor:
            return PipelineAdapter.velocity(adapter, *asked)

        def here() -> Tensor:
            return adapter.velocity(*asked)

        counts, answers = [], []
        for velocity in (by_pipeline, here):
            calls.clear()
            answers.append(velocity())
            counts.append(len(calls))
        ratio = statistics.median(seconds(here) / seconds(by_pipeline) for _ in range(repeats))
        apart = float((answers[0] - answers[1]).abs().max())
    return f"| `{case.name}` | {case.words} | {counts[0]} | {counts[1]} | {ratio:.2f} | {apart:.0e} |"


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="pairs of timed calls")
    parser.add_argument("names", nargs="*", help="adapters; all when absent")
    options = parser.parse_args()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    print("| adapter | batch of 8 | calls by the pipeline | calls here | time here / pipeline | largest difference |")
    print("|---|---|---|---|---|---|")
    for case in cases():
        if not options.names or case.name in options.names:
            print(compare(case, options.repeats), flush=True)


if __name__ == "__main__":
    main()
