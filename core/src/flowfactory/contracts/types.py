"""The values that flow between core and its plugins. `B` samples; `…` the shape of one latent.

Torch is imported only when tensors are joined; reading rows of the data does not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flowfactory.contracts.scheduler import Scheduler

KeyT = TypeVar("KeyT")

Conditions = Mapping[str, "Tensor"]
"""What a network is conditioned on: tensors with a leading batch axis, padded and masked by the adapter."""


@attrs.frozen
class Row:
    """One line of the data: a prompt and what belongs to it.

    images: condition images of edit models. metadata: every further column, as it was read.
    media: an image or a video to learn from; or two, the chosen and then the rejected.
    source: the name of the `[[data.source]]` it is from.
    """

    prompt: str
    negative_prompt: str | None = None
    images: tuple[Path, ...] = ()
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    media: tuple[Path, ...] = ()
    source: str = ""


@attrs.frozen(eq=False)
class Sample:
    """One generated sample, as rewards see it.

    media: an image `(3, H, W)` or frames `(F, 3, H, W)`, float32 in [0, 1], on the CPU unless all rewards score by
        `value`; empty where no reward of the run reads "media".
    slot: which of the epoch's groups it belongs to. replica: its place in the group.
    latents: what the media were decoded from `(…)`. conditions: what they were made from, with a batch axis of 1. Both
        are on the model's device, for rewards that read them; `None` for observers.
    """

    row: Row
    media: Tensor
    slot: int
    replica: int
    latents: Tensor | None = None
    conditions: Conditions | None = None


@attrs.frozen(eq=False)
class Rollout:
    """The trajectories of `B` samples, as stored.

    sigmas: the noise levels `(T+1,)`, float32, strictly falling from 1 (noise) to 0.
    steps: the stochastic steps, in order; empty after a deterministic rollout.
    latents: stored latents `(B, …)` by position: `i` and `i+1` for each stochastic step `i`, and `T`, the final ones;
        all of `0 … T` where the trainer needs "states". A branch has only the two of its step.
    logprobs: of each step, the log-probability `(B,)` of the stored latents. means: its mean `(B, …)`, where kept.
    """

    sigmas: Tensor
    steps: tuple[int, ...]
    latents: Mapping[int, Tensor]
    logprobs: Mapping[int, Tensor]
    means: Mapping[int, Tensor] = attrs.field(factory=dict)

    @property
    def final(self) -> Tensor:
        """The last latents `(B, …)`."""
        return self.latents[len(self.sigmas) - 1]

    @property
    def ceiling(self) -> float:
        """The second noise level: see `Scheduler`."""
        return float(self.sigmas[1])

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())))

    def __getitem__(self, samples: slice | Tensor) -> Rollout:
        return self._each(lambda own: {i: x[samples] for i, x in own.items()})

    def to(self, device: torch.device) -> Rollout:
        """The same trajectories on `device`; noise levels stay on the CPU."""
        return self._each(lambda own: moved(own, device))

    def _each(self, change: Callable[[Mapping[int, Tensor]], Mapping[int, Tensor]]) -> Rollout:
        """The trajectories with `change` applied to latents, log-probabilities and means."""
        own = change(self.latents), change(self.logprobs), change(self.means)
        return Rollout(self.sigmas, self.steps, *own)


def moved(tensors: Mapping[KeyT, Tensor], device: torch.device) -> dict[KeyT, Tensor]:
    """The tensors on `device`. From main memory to a GPU they are copied from pinned memory, without waiting."""
    if device.type == "cuda":
        tensors = {name: tensor if tensor.is_cuda else tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=device.type == "cuda") for name, tensor in tensors.items()}


@attrs.frozen
class Cut:
    """Prompts that a text encoder does not read to their end.

    encoder: the name of its tokenizer. most: how many tokens of a prompt it reads. count: how many prompts have more.
    longest: tokens of the longest prompt. rest: the part of that prompt that is not read.
    """

    encoder: str
    most: int
    count: int
    longest: int
    rest: str


@attrs.frozen(eq=False)
class Lineage:
    """Where branches come from.

    steps: the stochastic step that each began with `(N,)`; logprobs: that step's `(N,)`. parents: which of the N each
        one continues `(N,)`; -1: none.
    """

    steps: Tensor
    parents: Tensor
    logprobs: Tensor


@attrs.frozen(eq=False)
class Batch:
    """What a trainer sees of a micro-batch.

    advantages: `(B,)` float64, or `(B, n)` of each stochastic step; see `at`.
    on_policy: no optimizer step has been made since the rollout, and the rollout used the current weights.
    scheduler: the dynamics that sampled it. groups: `(B,)` the number of each sample's group; its members are adjacent.
    rows: of each, its line of the data. scores: by the label of the reward, `(B,)` float64. epoch: counted from 1.
    role: whose turn it is: "current", or one of `Needs.roles`.
    shares: by stochastic step, its share of all steps that the update trains, on all processes.
    branches: the number of each among the branches of its group. parents: the number of the branch it continues, -1:
        none. Both `(B,)`; `None` without branches.
    """

    rollout: Rollout
    conditions: Conditions
    advantages: Tensor
    on_policy: bool
    scheduler: Scheduler[Any]
    groups: Tensor = attrs.field()
    rows: Sequence[Row] = ()
    scores: Mapping[str, Tensor] = attrs.field(factory=dict)
    epoch: int = 1
    role: str = "current"
    shares: Mapping[int, float] = attrs.field()
    branches: Tensor | None = None
    parents: Tensor | None = None

    def at(self, step: int) -> Tensor:
        """The advantages `(B,)` of a stochastic step."""
        return self.advantages if self.advantages.dim() == 1 else self.advantages[:, self.rollout.steps.index(step)]

    @shares.default
    def _alike(self) -> dict[int, float]:
        return {step: 1 / len(self.rollout.steps) for step in self.rollout.steps}

    @groups.default
    def _each_its_own(self) -> Tensor:
        return self.advantages.new_tensor(range(len(self.advantages))).long()


@attrs.frozen(eq=False)
class Loss:
    """One term's loss: named scalar `parts` that core adds up, each with a gradient, and detached `metrics`."""

    parts: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = attrs.field(factory=dict)


@attrs.frozen
class Update:
    """An optimizer step just made: its `epoch`; `index` in it, from 0; if it is the `last`; `step` of all, from 1."""

    epoch: int
    index: int
    step: int
    last: bool
