"""Flow-GRPO for flowfactory: what the spec may say, and where the trainers are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Needs, Provides, TrainerSpec, hookimpl, key


@attrs.frozen(kw_only=True)
class ClippedSpec(TrainerSpec):
    """Keys of the trainers that clip probability ratios."""

    even_calls: ClassVar[bool] = True

    clip_low: float = key("The ratio is clipped below 1 - clip_low.", default=1e-4, gt=0, le=1)
    clip_high: float = key("The ratio is clipped above 1 + clip_high.", default=1e-4, gt=0)
    adv_clip: float = key("Advantages are clipped to this size.", default=5.0, gt=0)
    kl_beta: float = key("Weight of the divergence from the reference weights; 0 turns it off.", default=0.0, ge=0)
    kl: Literal["exact", "x", "v"] = key(
        "Divergence: `exact` between the Gaussians of a step, or the squared difference of their means (`x`) "
        "or of the velocities (`v`).",
        default="exact",
    )

    @property
    def needs(self) -> Needs:
        exact = self.kl_beta > 0 and self.kl == "exact"
        return Needs(trajectory="steps", density="gaussian" if exact else "any", reference=self.kl_beta > 0)


@attrs.frozen(kw_only=True)
class GRPOSpec(ClippedSpec):
    """Flow-GRPO."""

    noise_weight: float | None = key(
        "Weight each step's loss by this times its noise's standard deviation; TempFlow-GRPO uses 2.25.",
        default=None,
        gt=0,
    )
    level: bool = key(
        "Weight each step's loss by Flash-GRPO's lambda over its mean in the update: all move the weights alike then.",
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
        return Needs(trajectory="steps", density="gaussian", reference=self.kl_beta > 0)


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides("grpo", GRPOSpec, "flowfactory_plugin_grpo.grpo:GRPO", "Flow-GRPO: clipped policy gradients.")
    yield Provides(
        "grpo-guard", GRPOGuardSpec, "flowfactory_plugin_grpo.guard:GRPOGuard", "GRPO-Guard: ratios centred per step."
    )
