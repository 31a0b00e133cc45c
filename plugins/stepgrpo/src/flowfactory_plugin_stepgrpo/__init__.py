"""Credit by step for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import ClippedSpec, Needs, Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class Turning:
    """Where a trajectory turns, and what that is worth."""

    points: Literal["none", "towards", "consistent", "every"] = key(
        "Which steps are turns: `none`; those whose gain has the sign of the whole gain, after a step without it "
        "(`towards`); of these, those after which the rest has that sign, too (`consistent`); `every` step whose gain "
        "has another sign than the one before.",
        default="none",
    )
    main: Literal["gain", "whole"] = key(
        "The value of a step: its own `gain`, plus the bonus at a turn; or the bonus (`whole`), plus its gain at a "
        "turn, which is the authors' setting.",
        default="gain",
    )
    bonus: Literal["whole", "rest"] = key(
        "The bonus: the gain of the `whole` trajectory, or of the `rest`, from before the step to the end.",
        default="whole",
    )
    scale: float = key("What is added at a turn is multiplied by this.", default=1.0, gt=0)
    replace: bool = key("At a turn only the added value counts.", default=False)
    first: bool = key("The first step is a turn if its gain has the sign of the whole gain.", default=True)


@attrs.frozen(kw_only=True)
class StepGRPOSpec(ClippedSpec):
    """Flow-GRPO with an advantage for each step."""

    looks: Literal["completed", "estimated"] = key(
        "What is scored of the state before and after a step: the sample it becomes without further noise, or its "
        "estimate of the data, `x - sigma v`, which takes no further passes.",
        default="completed",
    )
    turning: Turning = key("TP-GRPO's turning points; when absent, the value of a step is its gain.", default=Turning())

    @property
    def needs(self) -> Needs:
        return attrs.evolve(super().needs, looks=self.looks)


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides(
        "stepgrpo",
        StepGRPOSpec,
        "flowfactory_plugin_stepgrpo.stepgrpo:StepGRPO",
        "DenseGRPO, Stepwise-Flow-GRPO, TP-GRPO: clipped policy gradients, an advantage for each step.",
    )
