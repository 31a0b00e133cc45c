"""DGPO for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Decay, DecoupledSpec, Needs, Provides, Times, hookimpl, key


@attrs.frozen(kw_only=True)
class DGPOSpec(DecoupledSpec):
    """Direct Group Preference Optimization."""

    even_calls: ClassVar[bool] = True

    times: Times = key(
        "Noise levels to train at; all samples of a group have the same ones.",
        default=Times(rule="discrete", fraction=0.7, count=4),
    )
    beta: float = key(
        "How soon a group's samples count as distinguished: a factor of errors, which are means over a latent's "
        "elements. 10 to 100 against the reference, 2000 to 5000 against the old weights, which are nearer.",
        default=100.0,
        gt=0,
    )
    baseline: Literal["reference", "old"] = key(
        "The weights to compare with, under which a better sample should be less likely.", default="reference"
    )
    clip_low: float = key(
        "A worse sample whose ratio to the old weights is below 1 - clip_low has no gradient.", default=0.05, gt=0
    )
    clip_high: float = key(
        "A better sample whose ratio to the old weights is above 1 + clip_high has no gradient.",
        default=0.05,
        gt=0,
    )
    adv_clip: float = key("Advantages are clipped to this size.", default=5.0, gt=0)
    kl_beta: float = key("Weight of the velocities' squared distance from the reference's; 0: off.", default=1e-3, ge=0)
    guidance: float = key(
        "Guidance scale of the compared velocities. The loss needs 1, which is none; for a distilled model, which gets "
        "its guidance as an input, use that of [sampling].",
        default=1.0,
        ge=0,
    )
    reference_guidance: float = key(
        "Guidance scale of the reference's velocities; above 1 if samples are made without guidance.", default=1.0, ge=0
    )
    old: Decay = key(
        "How slowly the old weights, with which ratios compare, follow the trained ones after each update.",
        default=Decay(rate=0.001, limit=0.3, flat=1),
    )
    sampler: Decay = key(
        "How slowly the weights that sample follow the trained ones after each update; with a limit of 0, the trained "
        "ones sample.",
        default=Decay(rate=0.001, limit=0.3, flat=201, start=0.2),
    )

    @property
    def needs(self) -> Needs:
        apart = self.sampler.limit > 0
        return Needs(
            rollout="sampler" if apart else "current",
            batch="groups",
            draws="group",
            reference=self.baseline == "reference" or self.kl_beta > 0,
            sets=frozenset({"old", "sampler"} if apart else {"old"}),
        )

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int]:
        """At each level the old weights, the reference where it is needed, and the trained ones."""
        each = group * self.times.drawn(steps)
        return each * (1 + self.needs.reference), each


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides(
        "dgpo",
        DGPOSpec,
        "flowfactory_plugin_dgpo.dgpo:DGPO",
        "DGPO: prefers a group's better samples to its worse ones.",
    )
