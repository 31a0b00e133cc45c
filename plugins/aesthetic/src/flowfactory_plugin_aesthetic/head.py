"""The predictor's layers, read from the authors' file: linear ones in a row, with nothing between them.

Those of LAION's second predictor map 768 numbers to 1024, 128, 64, 16 and 1; between them the authors have dropout,
which does nothing once training is over. Their first predictor is a single one.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear

DROPOUT = 2
"""How far apart the numbers of layers are that have dropout between them."""
_NAME = re.compile(r"(?:layers\.(\d+)\.)?(weight|bias)")


class Head:
    """Linear layers: weights `(out, in)` and biases `(out,)` float64, on the CPU."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.layers = layers

    @property
    def width(self) -> int:
        """How many numbers an embedding has."""
        return int(self.layers[0][0].shape[1])

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Scores `(N,)` of unit embeddings `(N, D)` float64."""
        for weight, bias in self.layers:
            embeddings = linear(embeddings, weight, bias)
        return embeddings[:, 0]


def load(location: str, file: str, revision: str | None) -> Head:
    """Read a head from a file, or a file of a hub id. Nothing but tensors is unpickled.

    Raises:
        OSError: there is none, or it cannot be reached. ValueError: it is no such predictor.
    """
    path = Path(location)
    if path.is_dir():
        path /= file
    elif not path.is_file():
        path = Path(hf_hub_download(location, file, revision=revision))
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} holds no tensors: {error}") from error
    return Head(layers_of(tensors, path))


def layers_of(tensors: Mapping[str, Tensor], path: Path) -> list[tuple[Tensor, Tensor]]:
    """The layers of a state dict, in order.

    Raises:
        ValueError: they are none that follow on each other and end in one number.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in dict(tensors).items():
        match = _NAME.fullmatch(str(name))
        if match is None or not isinstance(tensor, Tensor):
            raise ValueError(f"{path} is no aesthetic predictor: it has `{name}`, not `layers.0.weight` and so on")
        found.setdefault(int(match[1] or 0), {})[match[2]] = tensor.double()
    layers = [(found[n].get("weight"), found[n].get("bias")) for n in sorted(found)]
    whole = [(w, b) for w, b in layers if w is not None and b is not None and w.dim() == 2 and b.shape == w.shape[:1]]
    widths = [(w.shape[1], w.shape[0]) for w, _ in whole]
    if any(after - before > DROPOUT for before, after in pairwise(sorted(found))):
        raise ValueError(
            f"{path} is no linear predictor: more than dropout lies between its layers, as of those with ReLU"
        )
    follow = all(one[1] == other[0] for one, other in pairwise(widths))
    if not whole or len(whole) < len(layers) or not follow or widths[-1][1] != 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{path} is no aesthetic predictor: its layers do not lead to one number ({shapes or 'none'})")
    return whole
