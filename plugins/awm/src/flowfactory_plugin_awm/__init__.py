"""Advantage Weighted Matching for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Decay, DecoupledSpec, Needs, Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class AWMSpec(DecoupledSpec):
    """Advantage Weighted Matching."""

    even_calls: ClassVar[bool] = True

    weighting: Literal["uniform", "t", "t2", "huber", "ghuber"] = key(
        "The log-probability, of the matching error `l` at noise level `t`: `-l` (`uniform`), `-t l` (`t`), `-t² l` "
        "(`t2`), or about `-t √l` (`huber`), `-t l^p / p` (`ghuber`).",
        default="ghuber",
    )
    power: float = key("The `p` of `ghuber`.", default=0.25, gt=0, le=1)
    clip_low: float = key("The ratio is clipped below 1 - clip_low.", default=1.0, gt=0, le=1)
    clip_high: float = key("The ratio is clipped above 1 + clip_high.", default=1.0, gt=0)
    adv_clip: float = key("Advantages are clipped to this size.", default=5.0, gt=0)
    adv_max: float = key("Clipped advantages are scaled so that the largest has this size.", default=1.0, gt=0)
    kl_beta: float = key("Weight of the velocities' squared distance from the reference's; 0: off.", default=1e-3, ge=0)
    average_beta: float = key("The same for the distance from the averaged policy's; 0: off.", default=1.0, ge=0)
    kl: Literal["uniform", "elbo"] = key(
        "Whether squared distances count equally at all noise levels (`uniform`), or are divided by `2 g²` of "
        "Flow-GRPO's sampler (`elbo`).",
        default="uniform",
    )
    average: Decay = key("How slowly the averaged policy follows.", default=Decay(rate=0.001, limit=0.3))

    @property
    def needs(self) -> Needs:
        sets = frozenset({"average"}) if self.average_beta > 0 else frozenset[str]()
        return Needs(sets=sets, reference=self.kl_beta > 0)

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int]:
        """At each level the weights to stay near and, after the first update, those that sampled; and the trained."""
        each = group * self.times.drawn(steps)
        return each * (self.needs.reference + len(self.needs.sets) + (update > 0)), each


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides("awm", AWMSpec, "flowfactory_plugin_awm.awm:AWM", "AWM: policy gradients with the pretraining loss.")
