"""Diffusion-DPO for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import attrs
from flowfactory import DecoupledSpec, Needs, Provides, Times, hookimpl, key

TARGET = "flowfactory_plugin_dpo.dpo:DPO"
PRETRAINING = Times(rule="logit-normal", count=1, shift=3.0, range=(0.0, 1.0), table=1000)
"""How the levels of a pair are drawn in every published code: from the table a model with shift 3 was pretrained on."""


@attrs.frozen(kw_only=True)
class DPOSpec(DecoupledSpec):
    """Diffusion-DPO on the best and the worst sample of each group."""

    even_calls: ClassVar[bool] = True

    times: Times = key("Noise levels to train at; both of a pair have the same ones.", default=PRETRAINING)
    beta: float = key(
        "How soon a pair counts as distinguished: a factor of errors. These are means over a latent's elements, so a "
        "value is good for latents of any size; the paper's values are not, because its errors are sums.",
        default=100.0,
        gt=0,
    )
    guidance: float = key(
        "Guidance scale of the compared velocities, the policy's and the reference's. The loss needs 1, which is none; "
        "for a distilled model, which gets its guidance as an input, use that of [sampling].",
        default=1.0,
        ge=0,
    )

    @property
    def needs(self) -> Needs:
        return Needs(batch="groups", draws="group", reference=True)

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int]:
        """Of two samples at each level, the reference and the trained weights."""
        return 2 * self.times.drawn(steps), 2 * self.times.drawn(steps)


@attrs.frozen(kw_only=True)
class DiffusionDPOSpec(DPOSpec):
    """Diffusion-DPO on pairs of the data."""

    @property
    def needs(self) -> Needs:
        return attrs.evolve(super().needs, source="pairs", scores=False)


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides("dpo", DPOSpec, TARGET, "Online Diffusion-DPO: prefers each group's best sample to its worst.")
    yield Provides("diffusion-dpo", DiffusionDPOSpec, TARGET, "Diffusion-DPO on chosen and rejected media of the data.")
