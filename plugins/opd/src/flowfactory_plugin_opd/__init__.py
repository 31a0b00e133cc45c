"""On-policy distillation for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import attrs
from flowfactory import Location, Needs, Provides, TrainerSpec, hookimpl, key

COLUMN = "teacher"
"""Of the rows' columns, the one that names whom a row learns from."""


@attrs.frozen(kw_only=True)
class Teacher:
    """Weights that say where the student's steps should lead."""

    from_: Location = key("Its weights: what `from` of [lora] takes, or whole weights.")
    name: str = key("Its name in the rows' column `teacher` and in metrics.", default="teacher")
    guidance: float | None = key(
        "Guidance scale of its velocities; that of [sampling] when absent.", default=None, ge=0
    )


@attrs.frozen(kw_only=True)
class OPDSpec(TrainerSpec):
    """DiffusionOPD."""

    even_calls: ClassVar[bool] = True

    teachers: tuple[Teacher, ...] = key(
        "The teachers. If there are several, each row names its own in the column `teacher`: one, or a list, whose "
        "losses are added. Without that column it is the teacher with the name of the row's [[data.source]].",
        min_length=1,
    )
    distance: Literal["step", "velocity"] = key(
        "The distance from a teacher: of where a step leads (`step`), squared and divided by its noise, which is the "
        "KL divergence; without noise, half the squared distance. Or the squared one of the velocities (`velocity`).",
        default="step",
    )
    fraction: float = key(
        "In deterministic sampling: the share of the steps to train, counted from noise. In stochastic sampling, the "
        "steps of the window are trained.",
        default=0.9,
        gt=0,
        le=1,
    )

    def __attrs_post_init__(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several teachers are called `{twice[0]}`; give each a `name` of its own")

    @property
    def needs(self) -> Needs:
        names = frozenset(teacher.name for teacher in self.teachers)
        return Needs(
            scores=False,
            trajectory="states",
            loaded={teacher.name: teacher.from_ for teacher in self.teachers},
            columns={COLUMN: names} if len(names) > 1 else {},
        )

    def learned(self, steps: int) -> range:
        return range(max(1, int(steps * self.fraction)))

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int] | None:
        """The teacher and the student, at each step learned at. Of several teachers only the rows know."""
        each = group * (trained or len(self.learned(steps)))
        return (each, each) if len(self.teachers) == 1 else None


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    summary = "DiffusionOPD: on-policy distillation from one or several teachers."
    yield Provides("opd", OPDSpec, "flowfactory_plugin_opd.opd:OPD", summary)
