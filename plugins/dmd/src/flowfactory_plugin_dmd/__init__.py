"""DMD2 and TDM for flowfactory: what the spec may say, and where the trainers are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import DecoupledSpec, Needs, Provides, Role, Times, TrainerSpec, hookimpl, key

FAKE = "fake"
"""The role of the network that learns what the student makes."""


@attrs.frozen(kw_only=True, slots=False)  # so that there may be another base beside it
class StudentSpec(TrainerSpec):
    """Keys of both: a student of few steps, a teacher that is the reference, and a network between them."""

    even_calls: ClassVar[bool] = True

    fake_steps: int = key("Steps of the fake network before each step of the student.", default=5, ge=1)
    fake_lr: float = key("Its learning rate, as a multiple of the student's.", default=1.0, gt=0)
    guidance: float = key(
        "Guidance scale of the teacher, the reference. Student and fake network have that of [sampling].",
        default=1.0,
        ge=0,
    )

    @property
    def needs(self) -> Needs:
        roles = {FAKE: Role(steps=self.fake_steps, lr=self.fake_lr)}
        return Needs(scores=False, trajectory="states", reference=True, roles=roles)

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int]:
        """The student's for the fake network to learn; teacher and fake network for the student to."""
        return (group if role == FAKE else 2 * group), group


@attrs.frozen(kw_only=True)
class DMDSpec(StudentSpec, DecoupledSpec):
    """DMD2, without its discriminator."""

    times: Times = key(
        "The noise level at which teacher and fake network are compared: one (`count = 1`).",
        default=Times(rule="uniform", range=(0.001, 0.999), count=1),
    )
    fake_loss: Literal["data", "velocity"] = key(
        "Whether the fake network's error is that of its `velocity`, or of its estimate of the `data`, which is the "
        "first times the level.",
        default="data",
    )

    def __attrs_post_init__(self) -> None:
        if self.times.count != 1:
            raise ValueError("times: one noise level is compared at, so `count` is 1; say it")


@attrs.frozen(kw_only=True)
class TDMSpec(StudentSpec):
    """Trajectory Distribution Matching."""

    interval: Literal["step", "above"] = key(
        "From where the level is drawn at which a step is matched: within the `step`, or all levels `above` its end.",
        default="step",
    )
    levels: Literal["uniform", "logit-normal"] = key(
        "The distribution from which it is drawn there.", default="uniform"
    )
    huber: float = key("Width of the pseudo-Huber loss of the student; 0: squared distances.", default=1e-3, ge=0)
    most: float = key("The largest weight of the fake network's error, `(1 - sigma)² / sigma²`.", default=5.0, gt=0)
    importance: float = key(
        "The largest factor by which a density ratio raises or lowers a weight.", default=20.0, ge=1
    )


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    home = "flowfactory_plugin_dmd"
    yield Provides("dmd", DMDSpec, f"{home}.dmd:DMD", "DMD2: a few-step student of the reference, without data.")
    tdm = "TDM: a few-step student, matched along its own trajectory."
    yield Provides("tdm", TDMSpec, f"{home}.tdm:TDM", tdm)
