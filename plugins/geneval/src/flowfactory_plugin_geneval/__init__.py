"""Compositional prompts for flowfactory: what the spec may say, and where the reward is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import Provides, hookimpl, key
from flowfactory_plugin_judge import EndpointSpec


@attrs.frozen(kw_only=True)
class GenEvalSpec(EndpointSpec):
    """How much of what a prompt is composed of is there: questions of the row, answered by a vision-language model."""

    mean: Literal["geometric", "arithmetic"] = key(
        "How the probabilities of the right answers become one: the `geometric` mean needs all of the prompt, the "
        "`arithmetic` one as much of it as possible.",
        default="geometric",
    )


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    target = "flowfactory_plugin_geneval.geneval:GenEval"
    yield Provides("geneval", GenEvalSpec, target, "GenEval 2: questions about each part of a compositional prompt.")
