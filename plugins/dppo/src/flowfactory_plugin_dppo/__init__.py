"""Flow-DPPO for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import Needs, Provides, RatioSpec, hookimpl, key


@attrs.frozen(kw_only=True)
class DPPOSpec(RatioSpec):
    """Flow-DPPO."""

    delta: float = key(
        "Divergence from the policy that sampled, a mean over elements. A sample that has reached it no longer moves "
        "its ratio further from 1.",
        default=1e-5,
        ge=0,
    )

    @property
    def needs(self) -> Needs:
        old: Literal["means", "replayed"] = "means" if self.old == "sampled" else "replayed"
        return attrs.evolve(super().needs, density="gaussian", old=old)


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides(
        "dppo", DPPOSpec, "flowfactory_plugin_dppo.dppo:DPPO", "Flow-DPPO: policy gradients masked by divergence."
    )
