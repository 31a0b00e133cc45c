"""Every random number comes from a generator seeded by hashing what it is for.

So results depend on neither batch size, worker count nor world size, and resuming needs no generator state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowfactory.contracts.digest import Key, seed_of

__all__ = ["Draws", "Key", "generator", "seed_of"]


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `key`."""
    return torch.Generator().manual_seed(seed_of(*key))


class Draws:
    """One independent random stream per sample of a batch, so that draws do not depend on who shares the batch."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._generators = [generator(*key) for key in keys]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws `(B, *shape)`, float32 on the CPU."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators])

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), `(B, *shape)`, float32 on the CPU."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators])

    def permutation(self, n: int) -> Tensor:
        """A random order of `0 … n-1` for each sample, `(B, n)`."""
        return torch.stack([torch.randperm(n, generator=g) for g in self._generators])
