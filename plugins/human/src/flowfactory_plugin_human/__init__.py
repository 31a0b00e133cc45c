"""A person as a reward for flowfactory: what the spec may say, and where the rewards are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class HumanGroupSpec:
    """A person puts the samples of a prompt in order, in a local web page."""

    question: str = key("What the person is asked.", default="Which is best for this prompt?", min_length=1)
    patience: float = key(
        "Seconds that a call waits for its answers; the table's `timeout` must be longer.",
        default=540.0,
        gt=0,
        le=86400,
    )
    absent: Literal["fail", "skip"] = key(
        "If nobody has answered by then: the call fails, and `on_error` decides what happens (`fail`); or samples "
        "without an answer get no score, and the run continues (`skip`).",
        default="fail",
    )
    port: int = key("Where the page is, on this machine only; 0 takes a free port.", default=8400, ge=0, le=65535)


@attrs.frozen(kw_only=True)
class HumanSpec(HumanGroupSpec):
    """A person grades each sample by itself, in a local web page."""

    question: str = key("What the person is asked.", default="How good is it for this prompt?", min_length=1)
    levels: int = key("How many grades there are; the lowest scores 0, the highest 1.", default=5, ge=2, le=10)


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    home = "flowfactory_plugin_human.human"
    yield Provides("human", HumanSpec, f"{home}:Human", "A person grades samples in a local web page.")
    yield Provides("human-group", HumanGroupSpec, f"{home}:HumanGroup", "A person puts a group's samples in order.")
