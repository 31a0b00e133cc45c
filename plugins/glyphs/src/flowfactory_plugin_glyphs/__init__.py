"""Text rendering at a size that a laptop can train: a small FLUX checkpoint that writes short words, imperfectly."""

from collections.abc import Iterable

import attrs
from flowfactory import Provides, hookimpl


@attrs.frozen
class GlyphsSpec:
    """The reward takes no keys of its own."""


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides(
        "glyphs",
        GlyphsSpec,
        "flowfactory_plugin_glyphs.rewards:Glyphs",
        "how much the image looks like the quoted word in the font of this world, 0 to 1, from pixels",
    )
