"""Pairwise preferences for flowfactory: what the spec may say, and where the reward is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import Provides, hookimpl, key

QUESTION = (
    "The first and the second image were made for this prompt:\n{prompt}\n\n"
    "Which one is better? Weigh how well it shows what the prompt asks for, then how sound and pleasing it is. "
    "Think briefly, then end with a line that holds nothing but `first`, `second` or `tie`."
)


@attrs.frozen(kw_only=True)
class PreferenceSpec:
    """The share of comparisons within its group that a sample wins."""

    url: str = key(
        "Base address of an OpenAI-compatible server, e.g. `http://localhost:8000/v1`.", pattern=r"https?://\S+"
    )
    model: str = key("Name of the vision-language model there.", min_length=1)
    question: str = key(
        "What the judge is asked; `{prompt}` stands for the prompt.", default=QUESTION, pattern=r"(?s).*\{prompt\}.*"
    )
    key_variable: str | None = key(
        "Environment variable that holds the server's API key. It is sent only to the addresses that a variable of the "
        "same name and `_URL` lists.",
        default=None,
        pattern="[A-Za-z_][A-Za-z0-9_]*",
    )
    concurrency: int = key("Comparisons asked at the same time.", default=8, ge=1, le=256)
    max_tokens: int = key("Longest reply, in tokens.", default=512, ge=1, le=65536)
    request_timeout: float = key("Seconds one request may take.", default=120.0, gt=0, le=3600)
    attempts: int = key("How often a request is made before it counts as failed.", default=4, ge=1, le=100)
    pause: float = key(
        "Seconds before the second attempt; doubled before each further one, up to a minute.", default=1.0, ge=0, le=600
    )
    unclear: float = key(
        "Largest share of a group's replies that may be unclear; beyond it the group has no scores.",
        default=0.5,
        ge=0,
        le=1,
    )
    frames: int = key("Frames of a video that the judge sees, spread evenly over it.", default=4, ge=1)


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    target = "flowfactory_plugin_preference.preference:Preference"
    yield Provides("preference", PreferenceSpec, target, "Pref-GRPO: win rates by a vision-language judge.")
