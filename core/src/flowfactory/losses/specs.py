"""Keys that several algorithms' tables share. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs

from flowfactory.contracts.key import key
from flowfactory.contracts.specs import Needs, TrainerSpec


@attrs.frozen(kw_only=True)
class RatioSpec(TrainerSpec):
    """Keys of the trainers that compare each stochastic step's probability with the one it was sampled with."""

    even_calls: ClassVar[bool] = True

    old: Literal["sampled", "replayed"] = key(
        "What a step's new probability is compared with: the one from sampling (`sampled`); or one computed before "
        "the first update, in the update's own batch shape (`replayed`). The first update then compares with its own "
        "probability; every step of later updates takes one more pass.",
        default="sampled",
    )

    @property
    def needs(self) -> Needs:
        return Needs(trajectory="steps", density="any", old="logprobs" if self.old == "sampled" else "replayed")

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int] | None:
        """At every step the reference, old weights where later updates replay them, and the trained ones."""
        again = self.old == "replayed" and update > 0
        return group * trained * (self.needs.reference + again), group * trained


@attrs.frozen(kw_only=True)
class ClippedSpec(RatioSpec):
    """Keys of the trainers that clip probability ratios."""

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
        return attrs.evolve(super().needs, density="gaussian" if exact else "any", reference=self.kl_beta > 0)
