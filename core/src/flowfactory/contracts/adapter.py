"""The contract of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from flowfactory.contracts.key import Size
from flowfactory.contracts.specs import AdapterSpec
from flowfactory.contracts.types import Conditions, Cut, Row

SpecT = TypeVar("SpecT", bound=AdapterSpec)


class Adapter(ABC, Generic[SpecT]):
    """One model family, as flow matching sees it: `x = (1 - sigma) x0 + sigma noise`, `v = dx / dsigma`.

    `sigma` is 1 at pure noise and 0 at data. Only `velocity` and `decode` are called with gradients.

    not_encoded: keys of the spec that `encode` does not use: conditions cached with other values of them stay valid.
    edits: whether every row has to have a condition image.
    """

    not_encoded: ClassVar[frozenset[str]] = frozenset()
    edits: ClassVar[bool] = False

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec

    @abstractmethod
    def load(self, device: torch.device, dtype: torch.dtype, encoded: Conditions | None = None) -> None:
        """Read the checkpoint onto `device`, every weight directly in `dtype`.

        Args:
            encoded: one row's conditions `(1, …)`, when all rows are in the cache. `encode` will not be called, and
                what only it uses need not be read.

        Raises:
            ValueError: the checkpoint cannot be trained by this adapter; the message says why.
        """

    @abstractmethod
    def networks(self) -> Mapping[str, nn.Module]:
        """The trainable networks by name, in a fixed order."""

    @abstractmethod
    def lora_targets(self) -> Sequence[str]:
        """Module name endings that LoRA adapts by default."""

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> Conditions:
        """Prompts, negative prompts and condition images as tensors `(B, …)`. Deterministic, so it can be cached."""

    def cut(self, prompts: Sequence[str]) -> Sequence[Cut]:
        """For each text encoder that does not read all of `prompts` to their end, what it leaves out. Here: not known.

        Called before `drop_encoders`.
        """
        return ()

    def encodes_with(self, file: PurePath) -> bool:
        """Whether the result of `encode` may depend on a file of the checkpoint, by its path inside it. Here: on all.

        Conditions cached before such a file changed are not used again.
        """
        return True

    def collate(self, parts: Sequence[Conditions]) -> Conditions:
        """Join conditions along the batch. Tensors of unequal length are zero-padded at the end of their axes.

        Raises:
            ValueError: the parts are not of one kind, e.g. some rows have condition images and some have none.
        """
        for part in parts:
            if differing := sorted(part.keys() ^ parts[0].keys()):
                raise ValueError(
                    f"rows of one run must have the same conditions; only some have {', '.join(differing)}"
                )
        return {name: _join([part[name] for part in parts]) for name in parts[0]}

    @abstractmethod
    def drop_encoders(self) -> None:
        """Release all that only `encode` uses; called when all prompts are encoded."""

    @abstractmethod
    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Shape of one latent, without the batch axis.

        Raises:
            ValueError: the model cannot make that size; the message names the size it would make.
        """

    @abstractmethod
    def sigmas(self, steps: int, size: Size) -> Tensor:
        """Noise levels `(steps+1,)`, float32 on the CPU, strictly falling to 0; bit-equal to the pipeline's own."""

    @abstractmethod
    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size) -> Tensor:
        """The guided velocity `(B, …)` at latents `x` `(B, …)` and noise levels `sigma` `(B,)`, which may differ."""

    def trains_at(self, sigma: Tensor, size: Size) -> Tensor:
        """At which noise levels `(n,)` one of `networks` computes the velocity, not a frozen one: booleans `(n,)`.

        Here: at all of them. At the others `velocity` may have no gradient.
        """
        return torch.ones(len(sigma), dtype=torch.bool)

    @abstractmethod
    def decode(self, x: Tensor, size: Size) -> Tensor:
        """Images `(B, 3, H, W)` or frames `(B, F, 3, H, W)`, float32 in [0, 1]; differentiable in `x`."""

    def encode_media(self, media: Tensor, size: Size) -> Tensor:
        """Latents `(B, …)` float32 that decode to images `(B, 3, H, W)` or frames `(B, F, 3, H, W)` in [0, 1].

        Deterministic, so it can be cached. Only called for trainers that learn from the data.

        Raises:
            ValueError: the model cannot; the message says why.
        """
        raise ValueError(f"{type(self).__name__} does not encode media (`Adapter.encode_media`)")

    def place(self, device: torch.device) -> None:
        """Move what `decode` needs and `velocity` does not to `device`, or leave it where it is."""
        return None

    @classmethod
    @abstractmethod
    def tiny(cls, folder: Path) -> Path:
        """Write a checkpoint of a few hundred KB offline: random weights, local tokenizers, the real architecture."""


def _join(tensors: Sequence[Tensor]) -> Tensor:
    longest = [max(lengths) for lengths in zip(*(t.shape[1:] for t in tensors), strict=True)]
    ends = [[end for i in range(t.dim() - 1, 0, -1) for end in (0, longest[i - 1] - t.shape[i])] for t in tensors]
    return torch.cat([nn.functional.pad(t, end) for t, end in zip(tensors, ends, strict=True)])
