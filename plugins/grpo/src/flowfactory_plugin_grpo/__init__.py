"""Flow-GRPO for flowfactory: what the spec may say, and where the trainers are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import ClippedSpec, Needs, Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class GRPOSpec(ClippedSpec):
    """Flow-GRPO."""

    noise_weight: float | None = key(
        "Multiply each step's loss by this times the standard deviation of its noise; TempFlow-GRPO uses 2.25.",
        default=None,
        gt=0,
    )
    level: bool = key(
        "Multiply each step's loss by Flash-GRPO's lambda, divided by its mean in the update: all steps move the "
        "weights equally then.",
        default=False,
    )


@attrs.frozen(kw_only=True)
class GRPOGuardSpec(ClippedSpec):
    """GRPO-Guard."""

    clip_low: float = key("The ratio is clipped below 1 - clip_low.", default=2e-6, gt=0, le=1)
    clip_high: float = key("The ratio is clipped above 1 + clip_high.", default=2e-6, gt=0)
    reweight: bool = key("Divide each step's loss by how far sigma falls in it, as the authors do.", default=True)

    @property
    def needs(self) -> Needs:
        old: Literal["means", "replayed"] = "means" if self.old == "sampled" else "replayed"
        return attrs.evolve(super().needs, density="gaussian", old=old)


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides("grpo", GRPOSpec, "flowfactory_plugin_grpo.grpo:GRPO", "Flow-GRPO: clipped policy gradients.")
    yield Provides(
        "grpo-guard", GRPOGuardSpec, "flowfactory_plugin_grpo.guard:GRPOGuard", "GRPO-Guard: ratios centred per step."
    )
