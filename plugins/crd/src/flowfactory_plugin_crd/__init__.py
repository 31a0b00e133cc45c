"""Centered Reward Distillation for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Decay, DecoupledSpec, Needs, Provides, Times, hookimpl, key


@attrs.frozen(kw_only=True)
class CRDSpec(DecoupledSpec):
    """Centered Reward Distillation."""

    even_calls: ClassVar[bool] = True

    times: Times = key("Noise levels to train at.", default=Times(rule="discrete", fraction=0.99))
    beta: float = key(
        "How much an implicit reward counts against a given one: with a smaller one, weights move further to match it.",
        default=1.0,
        gt=0,
    )
    loss: Literal["mse", "bce"] = key(
        "How centred rewards are compared: by squares, or as logits and probabilities by cross entropy.", default="mse"
    )
    temperature: float | None = key(
        "Centre on the group's better samples, and then on its worse ones, by a softmax of this temperature; on all "
        "samples equally when absent.",
        default=None,
        gt=0,
    )
    adaptive: bool = key(
        "Divide squared errors by the mean absolute error, so that levels with large errors do not count more.",
        default=True,
    )
    adv_clip: float = key(
        "Advantages are clipped to this size; one of this size means certainly good or bad.", default=5.0, gt=0
    )
    kl_beta: float = key("Weight of the velocities' squared distance from the reference's; 0: off.", default=0.1, ge=0)
    adaptive_kl: bool = key(
        "Only the best samples have this weight; others have less, down to 1e-4 for the worst.", default=True
    )
    guidance: float = key(
        "Guidance scale of the compared velocities. The loss needs 1, which is none; for a distilled model, which gets "
        "its guidance as an input, use that of [sampling].",
        default=1.0,
        ge=0,
    )
    reference_guidance: float = key(
        "Guidance scale of the reference's velocities; use the one with which the model is meant to be used.",
        default=4.5,
        ge=0,
    )
    old: Decay = key(
        "How slowly the old weights, for which implicit rewards are 0, follow the trained ones after each epoch.",
        default=Decay(rate=0.005, limit=0.999, start=0.25),
    )
    sampler: Decay = key(
        "How slowly the weights that sample follow the trained ones after each epoch; with a limit of 0, the trained "
        "ones sample.",
        default=Decay(rate=0.0075, limit=0.999, flat=75),
    )

    @property
    def needs(self) -> Needs:
        apart = self.sampler.limit > 0
        return Needs(
            rollout="sampler" if apart else "current",
            batch="groups",
            reference=self.kl_beta > 0,
            sets=frozenset({"old", "sampler"} if apart else {"old"}),
        )

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int]:
        """At each level the old weights, the reference where it is needed, and the trained ones."""
        each = group * self.times.drawn(steps)
        return each * (1 + self.needs.reference), each


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides(
        "crd", CRDSpec, "flowfactory_plugin_crd.crd:CRD", "CRD: matches likelihoods to rewards, centred within a group."
    )
