"""Pairwise preferences for flowfactory: what the spec may say, and where the reward is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import Provides, hookimpl, key
from flowfactory_plugin_judge import EndpointSpec

QUESTION = (
    "The first and the second image were made for this prompt:\n{prompt}\n\n"
    "Which one is better? Weigh how well it shows what the prompt asks for, then how sound and pleasing it is. "
    "Think briefly, then end with a line that holds nothing but `first`, `second` or `tie`."
)


@attrs.frozen(kw_only=True)
class PreferenceSpec(EndpointSpec):
    """The share of comparisons within its group that a sample wins."""

    question: str = key(
        "What the judge is asked; `{prompt}` stands for the prompt.",
        default=QUESTION,
        pattern=r"[\s\S]*\{prompt\}[\s\S]*",
    )
    unclear: float = key(
        "Largest share of a group's replies that may be unclear; beyond it the group has no scores.",
        default=0.5,
        ge=0,
        le=1,
    )


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    target = "flowfactory_plugin_preference.preference:Preference"
    yield Provides("preference", PreferenceSpec, target, "Pref-GRPO: win rates by a vision-language judge.")
