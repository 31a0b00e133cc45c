"""DiffusionNFT for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Decay, DecoupledSpec, Needs, Provides, Times, hookimpl, key


@attrs.frozen(kw_only=True)
class NFTSpec(DecoupledSpec):
    """DiffusionNFT."""

    even_calls: ClassVar[bool] = True

    times: Times = key("Noise levels to train at.", default=Times(rule="subset"))
    beta: float = key("How far the implicit policies lie from the old one; smaller learns faster.", default=1.0, gt=0)
    adv_clip: float = key(
        "Advantages are clipped to this size; one of this size means certainly good or bad.", default=5.0, gt=0
    )
    mode: Literal["all", "positive", "negative", "one", "binary"] = key(
        "Which advantages count: `all`, only `positive` or `negative` ones, or their sign (`one`: positive ones as 1, "
        "others as 0; `binary`: 1 or -1).",
        default="all",
    )
    kl_beta: float = key("Weight of the velocities' squared distance from the reference's; 0: off.", default=1e-4, ge=0)
    old: Decay = key("How slowly the sampling policy follows the trained one.", default=Decay(rate=0.001, limit=0.5))

    @property
    def needs(self) -> Needs:
        return Needs(rollout="old", sets=frozenset({"old"}), reference=self.kl_beta > 0)

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int]:
        """At each level the old weights, the reference where it has a weight, and the trained ones."""
        each = group * self.times.drawn(steps)
        return each * (1 + self.needs.reference), each


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides("nft", NFTSpec, "flowfactory_plugin_nft.nft:NFT", "DiffusionNFT: learns on the forward process.")
