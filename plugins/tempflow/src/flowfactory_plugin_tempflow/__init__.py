"""TempFlow-GRPO for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import Branches, ClippedSpec, Needs, Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class TempFlowSpec(ClippedSpec):
    """TempFlow-GRPO."""

    width: int = key("Branches that leave each start's trajectory at every stochastic step.", default=6, ge=2)
    noise_weight: float | None = key(
        "Each step's loss is multiplied by this times the standard deviation of its noise.",
        default=2.25,
        gt=0,
    )

    @property
    def needs(self) -> Needs:
        return attrs.evolve(super().needs, branches=Branches(self.width))


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides(
        "tempflow",
        TempFlowSpec,
        "flowfactory_plugin_tempflow.tempflow:TempFlow",
        "TempFlow-GRPO: branches that differ in the noise of one step, and in nothing else.",
    )
