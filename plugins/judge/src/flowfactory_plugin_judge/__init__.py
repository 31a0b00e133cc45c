"""A vision-language judge for flowfactory: what the spec may say, and where the reward is. Imports no torch.

Other rewards that ask such a server extend `EndpointSpec` and ask by `flowfactory_plugin_judge.chat`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import attrs
from flowfactory import Provides, hookimpl, key

QUESTION = (
    "The image was made for this prompt:\n{prompt}\n\n"
    "How good is it? Weigh how well it shows what the prompt asks for, then how sound and pleasing it is."
)


@attrs.frozen(kw_only=True)
class EndpointSpec:
    """Keys of every reward that asks a vision-language model behind an OpenAI-compatible server."""

    url: str = key(
        "Base address of an OpenAI-compatible server, e.g. `http://localhost:8000/v1`.", pattern=r"https?://\S+"
    )
    model: str = key("Name of the vision-language model there.", min_length=1)
    key_variable: str | None = key(
        "Environment variable that holds the server's API key. It is sent only to the addresses that a variable of the "
        "same name and `_URL` lists.",
        default=None,
        pattern="[A-Za-z_][A-Za-z0-9_]*",
    )
    concurrency: int = key("Questions asked at the same time.", default=8, ge=1, le=256)
    max_tokens: int = key("Longest reply, in tokens.", default=512, ge=1, le=65536)
    request_timeout: float = key("Seconds one request may take.", default=120.0, gt=0, le=3600)
    attempts: int = key("How often a request is made before it counts as failed.", default=4, ge=1, le=100)
    pause: float = key(
        "Seconds before the second attempt; doubled before each further one, up to a minute.", default=1.0, ge=0, le=600
    )
    frames: int = key("Frames of a video that the judge sees, spread evenly over it.", default=4, ge=1)


@attrs.frozen(kw_only=True)
class Aspect:
    """One of several things that are judged."""

    name: str = key("What it is called in metrics, samples and reports.", pattern=r"[A-Za-z0-9_.-]+")
    question: str = key("What the judge is asked; `{prompt}` stands for the prompt.", min_length=1)
    weight: float = key("Its share of the score, beside the others' weights.", default=1.0, gt=0, le=1e6)


@attrs.frozen(kw_only=True)
class JudgeSpec(EndpointSpec):
    """How good a sample is by itself, in the eyes of a vision-language model."""

    question: str = key(
        "What the judge is asked; `{prompt}` stands for the prompt. The form of the answer is added.",
        default=QUESTION,
        min_length=1,
    )
    aspects: tuple[Aspect, ...] = key(
        "Several things to judge, each by a question of its own in place of `question`: tables with `name`, "
        "`question` and `weight`. The score is their weighted mean.",
        default=(),
    )
    answer: Literal["number", "yes"] = key(
        "What it answers: a `number` from `lowest` to `highest`, after thinking; or yes or no, where the score is the "
        "probability of `yes`. That takes one token, and a server that returns log-probabilities.",
        default="number",
    )
    lowest: float = key("The number that scores 0.", default=0.0, ge=-1e6, le=1e6)
    highest: float = key("The number that scores 1.", default=10.0, ge=-1e6, le=1e6)
    unclear: float = key(
        "Largest share of a call's samples whose replies may contain no answer; these get no score. Above it the call "
        "fails.",
        default=0.25,
        ge=0,
        le=1,
    )

    @highest.validator
    def _is_above(self, attribute: attrs.Attribute[Any], value: float) -> None:
        if value <= self.lowest:
            raise ValueError(f"expected a number above `lowest`, which is {self.lowest:g}, not {value:g}")

    @aspects.validator
    def _differ(self, attribute: attrs.Attribute[Any], value: tuple[Aspect, ...]) -> None:
        if twice := [name for name, count in Counter(one.name for one in value).items() if count > 1]:
            raise ValueError(f"two aspects are called {twice[0]!r}; each needs a name of its own")


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    target = "flowfactory_plugin_judge.judge:Judge"
    yield Provides("judge", JudgeSpec, target, "Grades by a vision-language model, of one or several aspects.")
