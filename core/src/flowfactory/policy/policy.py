"""The policy that trainers and the rollout see: an adapter, its weight sets, and how it is asked."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions, Row
from flowfactory.policy.caching import BlockCache
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import Processes
from flowfactory.processes.stop import StopRequest

Rewarded = Callable[[Tensor, Sequence[Row]], Tensor]
"""`reward(media, rows)`: see `Policy.reward`."""

FORWARD, TRAINED = "network/forward", "network/trained"


class ModelPolicy:
    """`flowfactory.contracts.trainer.Policy` over an adapter, at one guidance and size; counts what passes the network.

    Args:
        offload: whether what `decode` needs is on the device only while it runs.
        recompute: whether what a decoder computes with a gradient is computed again in the backward pass.
        rewarded: what rewards say; none: nobody asks.
        merged: whether samples are made with LoRA added to the weights it adapts.
        cache: lets the networks skip blocks while samples are made.
        stop: looked at before each call of a network, a decoder or the rewards.
    """

    def __init__(
        self,
        adapter: Adapter[Any],
        weights: Weights,
        processes: Processes,
        dtype: torch.dtype,
        guidance: float,
        size: Size,
        offload: bool = False,
        recompute: bool = False,
        rewarded: Rewarded | None = None,
        merged: bool = False,
        cache: BlockCache | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self._adapter, self._weights, self._processes = adapter, weights, processes
        self._dtype, self._guidance, self._size, self._offload = dtype, guidance, size, offload
        self._recompute, self._rewarded, self._stop = recompute, rewarded, stop
        self._merged, self._cache = merged, cache
        self._passed = Counter[str]()

    def at(self, size: Size) -> ModelPolicy:
        """The same policy for samples of another size."""
        other = copy.copy(self)
        other._size, other._passed = size, Counter()
        return other

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float | None = None) -> Tensor:
        """The velocity `(B, …)` at `x` `(B, …)` and levels `sigma` `(B,)`, with the spec's guidance or another."""
        self._look()
        guidance = self._guidance if guidance is None else guidance
        self._passed[TRAINED if torch.is_grad_enabled() else FORWARD] += len(x)
        if torch.is_grad_enabled():
            self._passed[f"{TRAINED}/{self._weights.active}"] += len(x)
        if self._cache:
            self._cache.begin(len(x))
        with self._processes.calling():
            return self._adapter.velocity(x.to(self._dtype), sigma, conditions, guidance, self._size)

    def read_counts(self) -> dict[str, float]:
        """Samples that passed the network since the last reading: without, and with a backward pass to follow.

        Of the latter those of each role also apart.
        """
        roles = [f"{TRAINED}/{name}" for name in self._weights.sets]
        counts = {name: float(self._processes.sum(self._passed[name])) for name in (FORWARD, TRAINED, *roles)}
        self._passed.clear()
        return {name: count for name, count in counts.items() if count or name not in roles}

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels `(steps+1,)` of the model's own schedule."""
        return self._adapter.sigmas(steps, self._size)

    def trains_everywhere(self) -> bool:
        """Whether there is no noise level at which a network answers that is not trained."""
        return bool(self._adapter.trains_at(torch.linspace(1, 0, 1001)[:-1], self._size).all())

    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return self._adapter.latent_shape(self._size)

    def decode(self, x: Tensor, stay: bool = False) -> Tensor:
        """Images `(B, 3, H, W)` or frames `(B, F, 3, H, W)`, float32 in [0, 1], on the CPU unless they are to `stay`.

        Where `x` has a gradient they have one, on the device, and what decodes stays there for the backward pass.
        """
        self._look(alone=True)
        if self._offload:
            self._adapter.place(self._processes.device)
        if x.requires_grad:
            return self._differentiably(x)
        try:
            with torch.no_grad():
                return self._decoded(x) if stay else self._decoded(x).cpu()
        finally:
            if self._offload:
                self._adapter.place(torch.device("cpu"))

    def _look(self, alone: bool = False) -> None:
        if self._stop is not None:
            self._stop.look(self._processes, alone)

    def _decoded(self, x: Tensor) -> Tensor:
        return self._adapter.decode(x.to(self._dtype), self._size).float()

    def _differentiably(self, x: Tensor) -> Tensor:
        """Media with a gradient; one by one where the decoder is to be asked again, so that it keeps one at a time."""
        if not self._recompute:
            return self._decoded(x)
        with set_checkpoint_early_stop(False):  # pipelines are not to be stopped by what they do not know
            return torch.cat([checkpoint(self._decoded, one, use_reentrant=False) for one in torch.split(x, 1)])

    def reward(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        """What the rewards that count say together, `(B,)`, with a gradient where `media` have one.

        Raises:
            RewardError: one of them failed, or has no gradient.
        """
        if self._rewarded is None:
            raise TypeError("no rewards are loaded that this policy could ask")
        self._look(alone=True)
        return self._rewarded(media, rows)

    @contextmanager
    def heard(self, counts: bool) -> Iterator[None]:
        """Unless what is computed `counts`, no reward is asked and `reward` is 0: it keeps other processes company."""
        asked = self._rewarded
        if asked is not None and not counts:
            self._rewarded = _nothing
        try:
            yield
        finally:
            self._rewarded = asked

    def using(self, weights: str) -> AbstractContextManager[None]:
        """Compute with another set of weights; see `Weights.using`."""
        return self._weights.using(weights)

    @contextmanager
    def sampling(self, weights: str, exactly: bool = False) -> Iterator[None]:
        """Make samples that pass the network together: without a gradient, and with no other set of weights.

        Args:
            exactly: whether every block is to compute, as evaluations want it.
        """
        with ExitStack() as undone:
            undone.enter_context(self._weights.using(weights))
            if self._merged:
                undone.enter_context(self._weights.merged())
            if self._cache and not exactly:
                undone.enter_context(self._cache.active())
            yield

    def move(self, weights: str, decay: float) -> None:
        """Move a set towards the current weights; see `Weights.move`."""
        self._weights.move(weights, decay)


def _nothing(media: Tensor, rows: Sequence[Row]) -> Tensor:
    """0 `(B,)`, with a gradient of zeros where media have one."""
    return 0 * media.flatten(1).mean(1)
