"""Every random number comes from a stream named by what it is for.

A stream is Philox (Salmon et al. 2011), a counter-based generator: its 128-bit key is a hash of the name, so that no
two streams of a run are equal. Results depend on neither batch size, worker count nor world size, and resuming needs
no state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flowfactory.contracts.digest import Key, hash_of, seed_of

__all__ = ["Draws", "Key", "seed_of"]


class Draws:
    """One independent random stream per sample of a batch, so that draws do not depend on the rest of the batch."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._streams = [np.random.Generator(np.random.Philox(key=hash_of(*key))) for key in keys]

    def __len__(self) -> int:
        return len(self._streams)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws `(B, *shape)`, float32 on the CPU."""
        drawn = np.empty((len(self), math.prod(shape)), np.float32)
        for stream, row in zip(self._streams, drawn, strict=True):
            stream.standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(drawn).reshape(len(self), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), `(B, *shape)`, float32 on the CPU."""
        drawn = np.empty((len(self), math.prod(shape)), np.float32)
        for stream, row in zip(self._streams, drawn, strict=True):
            stream.random(dtype=np.float32, out=row)
        return torch.from_numpy(drawn).reshape(len(self), *shape)

    def permutation(self, n: int) -> Tensor:
        """A random order of `0 … n-1` for each sample, `(B, n)`."""
        orders = [stream.permutation(n) for stream in self._streams]
        return torch.from_numpy(np.array(orders, np.int64).reshape(len(self), n))
