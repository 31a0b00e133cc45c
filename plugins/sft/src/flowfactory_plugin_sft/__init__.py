"""Supervised fine-tuning for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import DecoupledSpec, Needs, Provides, Times, hookimpl, key

PRETRAINING = Times(rule="logit-normal", count=1, shift=3.0, range=(0.0, 1.0), table=1000)
"""How Stable Diffusion 3 was pretrained, and how diffusers' scripts draw levels unless told otherwise."""


@attrs.frozen(kw_only=True)
class SFTSpec(DecoupledSpec):
    """Flow matching on given media."""

    even_calls: ClassVar[bool] = True

    times: Times = key(
        "Noise levels to train at; `shift` should be that of the model's sampling schedule.", default=PRETRAINING
    )
    weighting: Literal["none", "sigma_sqrt", "cosmap"] = key(
        "The factor of a level's error: 1 (`none`), `1 / sigma²` (`sigma_sqrt`), or "
        "`2 / (pi (1 - 2 sigma + 2 sigma²))` (`cosmap`).",
        default="none",
    )
    precondition: bool = key(
        "Compare estimates of the data, not velocities: this multiplies errors by `sigma²`.", default=False
    )
    guidance: float = key(
        "Guidance scale of the compared velocities. The loss needs 1, which is none; for a distilled model, which gets "
        "its guidance as an input, use the one that it will be sampled with.",
        default=1.0,
        ge=0,
    )

    @property
    def needs(self) -> Needs:
        return Needs(source="media", scores=False)

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int]:
        """The trained weights, at each level."""
        return 0, group * self.times.drawn(steps)


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides("sft", SFTSpec, "flowfactory_plugin_sft.sft:SFT", "Supervised fine-tuning on media of the data.")
