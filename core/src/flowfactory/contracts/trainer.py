"""The contract of an algorithm. Core owns the loop; a trainer says what it needs and what the loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Needs, TrainerSpec
from flowfactory.contracts.types import Batch, Conditions, Lineage, Loss, Row, Update

SpecT = TypeVar("SpecT", bound=TrainerSpec)


class Policy(Protocol):
    """The model as a trainer sees it: a velocity field whose weights can be exchanged."""

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float | None = None) -> Tensor:
        """The velocity `(B, …)` at `x` `(B, …)` and noise levels `sigma` `(B,)`.

        Args:
            guidance: the guidance scale; the rollout's when absent.
        """
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` or frames `(B, F, 3, H, W)` in [0, 1]; with a gradient if `x` has one."""
        ...

    def reward(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        """The weighted sum `(B,)` of the rewards that count, with a gradient. Only for `Needs.gradient`."""
        ...

    def using(self, weights: str) -> AbstractContextManager[None]:
        """Compute with "current", "reference" or "ema" weights, or with one of `Needs.sets`, `roles` or `loaded`."""
        ...

    def move(self, weights: str, decay: float) -> None:
        """`set <- decay * set + (1 - decay) * current` for one of the trainer's own `Needs.sets`."""
        ...


class Scores(Protocol):
    """Rewards of one epoch, over all processes.

    values: by label, `(N,)` float64; NaN where a reward does not apply or failed. weights: by label.
    looks: by label, with `Needs.looks`: `(N, n+1)`, of the states before each of n stochastic steps and after the last.
    lineage: with `Needs.branches`. The N are branches then, with the mean score of the samples that each leads to.
    """

    @property
    def values(self) -> Mapping[str, Tensor]: ...

    @property
    def weights(self) -> Mapping[str, float]: ...

    @property
    def looks(self) -> Mapping[str, Tensor]: ...

    @property
    def lineage(self) -> Lineage | None: ...

    def advantages(
        self, groups: Tensor, aggregate: str, std: str, values: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """One advantage per sample, `(N,)` float64, from all rewards; see `aggregate` and `std` of `TrainerSpec`.

        Args:
            values: other values to compare, by label; of `(N, n)` each column separately.
        """
        ...


class Trainer(ABC, Generic[SpecT]):
    """One algorithm."""

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec

    @property
    def needs(self) -> Needs:
        """What core must provide."""
        return self.spec.needs

    def advantages(self, scores: Scores, groups: Tensor) -> Tensor:
        """Advantages float64 `(N,)`, or by stochastic step `(N, n)`, within `groups` `(N,)`. NaN: not trained."""
        return scores.advantages(groups, self.spec.aggregate, self.spec.std)

    @abstractmethod
    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Any]:
        """What to train on: one frozen value per loss evaluation, made once, without gradients, before any update.

        "current" are still the rollout's weights. Choose times and noise here (from `draws`, one stream per sample; see
        `Needs.draws`), and keep all that must not change when the weights do: old predictions, reference predictions.
        """

    @abstractmethod
    def loss(self, policy: Policy, batch: Batch, term: Any) -> Loss:
        """The loss of one term under the weights of `batch.role`, averaged over the batch's samples, or its groups."""

    def after_update(self, policy: Policy, update: Update) -> None:
        """Called after each optimizer step, e.g. to update the old policy."""
        return None

    def after_epoch(self, metrics: Mapping[str, float]) -> None:
        """Called after the last update of an epoch, with its metrics of sampling, scores and training.

        They are the same on every process.
        """
        return None

    def state(self) -> Mapping[str, Tensor]:
        """What the trainer keeps from one epoch to the next; saved in checkpoints; the same on every process."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned, from a checkpoint."""
        return None
