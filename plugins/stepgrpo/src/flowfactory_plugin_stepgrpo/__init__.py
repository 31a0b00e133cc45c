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
        "Which steps are turns: `none`; those that lead to where the whole leads, after one that did not (`towards`); "
        "of them those after which the rest does, too (`consistent`); `every` one whose gain has another sign than "
        "the one before.",
        default="none",
    )
    main: Literal["gain", "whole"] = key(
        "What every step is worth: its own `gain`, and turns more by the bonus; or the `whole` (the bonus), and turns "
        "more by their gain, which is the authors' setting.",
        default="gain",
    )
    bonus: Literal["whole", "rest"] = key(
        "The gain of the `whole` trajectory, or of the `rest` of it from before the step.", default="whole"
    )
    scale: float = key("What is added at a turn is multiplied by this.", default=1.0, gt=0)
    replace: bool = key("At a turn what is added is all that counts.", default=False)
    first: bool = key("The first step is one if it leads to where the whole leads.", default=True)


@attrs.frozen(kw_only=True)
class StepGRPOSpec(ClippedSpec):
    """Flow-GRPO with an advantage for each step."""

    looks: Literal["completed", "estimated"] = key(
        "What is scored of the state before and after a step: the sample it becomes without further noise, or its "
        "estimate of the data, `x - sigma v`, which takes no further passes.",
        default="completed",
    )
    turning: Turning = key("TP-GRPO's turning points; without, a step is worth its gain.", default=Turning())

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
