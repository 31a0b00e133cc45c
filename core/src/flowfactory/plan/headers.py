"""What a checkpoint holds, from its configs and the headers of its weights. No torch: no weight is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

Shape = tuple[int, ...]

_BLOCK = re.compile(r"\w+\.\d+\.")
"""How the names of weights begin in the blocks that a network repeats."""

_WEIGHTS = re.compile(r"\w+(-\d+-of-\d+)?\.safetensors")
"""Files without a variant's name: those that are read when nothing else is asked for."""


@attrs.frozen
class Part:
    """One model of a checkpoint: its floating-point weights by name, and its config."""

    shapes: Mapping[str, Shape]
    config: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(map(math.prod, self.shapes.values()))

    def linear(self, inside_blocks: bool = False) -> dict[str, tuple[int, int]]:
        """Rows and columns of what linear layers multiply by, by layer; of convolutions, as matrices.

        Args:
            inside_blocks: only linear layers, and only those in the blocks the network repeats.
        """
        return {
            name.removesuffix(".weight"): (shape[0], math.prod(shape[1:]))
            for name, shape in self.shapes.items()
            if name.endswith(".weight")
            and (len(shape) == 2 and _BLOCK.match(name) is not None if inside_blocks else len(shape) > 1)
        }

    def adapted(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """Rows and columns of the layers with these name endings, as peft finds them; of attention's when empty."""
        if targets:
            endings = tuple(f".{target}" for target in targets)
            return [shape for name, shape in self.linear().items() if f".{name}".endswith(endings)]
        return [
            shape
            for name, shape in self.linear().items()
            if any("attn" in above or "attention" in above for above in name.split(".")[:-1])
        ]


def on_disk(path: str, revision: str | None) -> Path | None:
    """Where a checkpoint lies: its folder, or the hub's cache; `None` for one that was not downloaded."""
    if Path(path).is_dir():
        return Path(path)
    if Path(path).is_absolute():
        return None
    from huggingface_hub import try_to_load_from_cache  # takes a sixth of a second

    found = try_to_load_from_cache(path, "model_index.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def read(checkpoint: Path) -> dict[str, Part]:
    """The models of a pipeline by their folders' names; without those whose weights are not safetensors."""
    return {folder.name: part for folder in sorted(checkpoint.iterdir()) if (part := _part(folder)) is not None}


def _part(folder: Path) -> Part | None:
    config = folder / "config.json"
    weights = [file for file in folder.glob("*.safetensors") if _WEIGHTS.fullmatch(file.name)]
    if not weights or not config.is_file():
        return None
    shapes = {name: shape for file in weights for name, shape in _shapes(file).items()}
    return Part(shapes, json.loads(config.read_text(encoding="utf-8")))


def _shapes(file: Path) -> dict[str, Shape]:
    """Of floating-point tensors: a safetensors file begins with the length of its JSON header, and that."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
    return {name: tuple(facts["shape"]) for name, facts in tensors.items() if facts["dtype"].startswith(("F", "BF"))}
