"""Flow-DPPO for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import attrs
from flowfactory import Needs, Provides, TrainerSpec, hookimpl, key


@attrs.frozen(kw_only=True)
class DPPOSpec(TrainerSpec):
    """Flow-DPPO."""

    even_calls: ClassVar[bool] = True

    delta: float = key(
        "Divergence from the policy that sampled, a mean over elements, from which on a sample no longer moves the "
        "ratio further from 1.",
        default=1e-5,
        ge=0,
    )

    @property
    def needs(self) -> Needs:
        return Needs(trajectory="steps", density="gaussian")


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides(
        "dppo", DPPOSpec, "flowfactory_plugin_dppo.dppo:DPPO", "Flow-DPPO: policy gradients masked by divergence."
    )
