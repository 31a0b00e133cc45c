"""ReFL and DRaFT for flowfactory: what the spec may say, and where the trainers are. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import attrs
from flowfactory import Needs, Provides, TrainerSpec, hookimpl, key


@attrs.frozen(kw_only=True)
class DraftSpec(TrainerSpec):
    """DRaFT-K."""

    even_calls: ClassVar[bool] = True

    steps: int = key(
        "Through how many of the last steps the gradient goes back; the number of all steps, or more, means all.",
        default=1,
        ge=1,
    )

    @property
    def needs(self) -> Needs:
        return Needs(scores=False, gradient=self.steps, trajectory="states")

    def learned(self, steps: int) -> range:
        return range(max(0, steps - self.steps), steps)


@attrs.frozen(kw_only=True)
class ReFLSpec(TrainerSpec):
    """ReFL."""

    even_calls: ClassVar[bool] = True

    fraction: float = key(
        "The last share of the steps, from which the step with a gradient is drawn.", default=0.25, gt=0, le=1
    )
    threshold: float = key(
        "A sample with this reward or more has no gradient; 2 is meant for ImageReward's standardised scores.",
        default=2.0,
    )
    scale: float = key("The loss is multiplied by this.", default=1e-3, gt=0)

    @property
    def needs(self) -> Needs:
        return Needs(scores=False, gradient=1, trajectory="states")

    def learned(self, steps: int) -> range:
        """Of the last `fraction`, rounded up, and at least one."""
        return range(steps - max(1, math.ceil(self.fraction * steps - 1e-6)), steps)


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    home = "flowfactory_plugin_refl"
    yield Provides("draft", DraftSpec, f"{home}.draft:Draft", "DRaFT-K: rewards' gradients through the last K steps.")
    yield Provides("refl", ReFLSpec, f"{home}.refl:ReFL", "ReFL: rewards' gradients through one late step.")
