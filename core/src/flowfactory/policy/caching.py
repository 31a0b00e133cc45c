"""Blocks that are not computed where the first of them says that little has changed: diffusers' first-block cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
from diffusers import CacheMixin, FirstBlockCacheConfig
from torch import nn

from flowfactory.policy import merging
from flowfactory.spec.tables import Sampling


@attrs.define(eq=False)
class BlockCache:
    """Lets networks skip blocks in passes that follow each other.

    A pass may call a network several times, for prompts with and without guidance, or of several lengths; each of
    these calls compares itself with the one in the same place of the pass before, if that was of as many samples.

    networks: those of the model, by name. threshold: how much may change, as a share, in what the first block adds.
    """

    networks: Mapping[str, nn.Module]
    threshold: float
    _samples: int = 0
    _calls: Counter[nn.Module] = attrs.field(factory=Counter)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Skip blocks meanwhile; nothing is remembered from earlier."""
        with ExitStack() as off:

            def enter(network: Any, _: object) -> None:
                self._calls[network] += 1
                off.enter_context(network.cache_context(f"{self._samples} samples, call {self._calls[network]}"))

            for network in self.networks.values():
                assert isinstance(network, CacheMixin)
                network.enable_cache(FirstBlockCacheConfig(self.threshold))
                off.callback(network.disable_cache)
                off.callback(network.register_forward_pre_hook(enter).remove)
            yield

    def begin(self, samples: int) -> None:
        """A pass of so many samples begins."""
        self._samples = samples
        self._calls.clear()

    def check(self) -> None:
        """Make sure that the networks can do so.

        Raises:
            ValueError: one cannot; the message names it.
        """
        for name, network in self.networks.items():
            kind = f"[sampling] first_block_cache: `{name}`, a {type(network).__name__}"
            if not isinstance(network, CacheMixin):
                raise ValueError(f"{kind}, takes none of diffusers' caches; leave it out")
        try:
            with self.active():
                pass
        except (ValueError, IndexError) as error:
            what = f"diffusers cannot skip blocks of {' and '.join(self.networks)}"
            raise ValueError(f"[sampling] first_block_cache: {what}; leave it out: {error}") from error


def shortcuts(sampling: Sampling, networks: Mapping[str, nn.Module]) -> BlockCache | None:
    """The block cache that `[sampling]` asks for, once it is known that networks can do all that it does.

    Raises:
        ValueError: they cannot; the message names the network.
    """
    if sampling.merged:
        merging.check(networks)
    if sampling.first_block_cache is None:
        return None
    cache = BlockCache(networks, sampling.first_block_cache)
    cache.check()
    return cache
