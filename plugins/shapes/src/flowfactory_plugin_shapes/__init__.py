"""The embedded default of flowfactory: a small world of coloured shapes, a reward that reads pixels, a checkpoint."""

from collections.abc import Iterable

import attrs
from flowfactory import Provides, hookimpl


@attrs.frozen
class ShapesSpec:
    """The rewards of the shapes world take no keys of their own."""


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides(
        "shapes",
        ShapesSpec,
        "flowfactory_plugin_shapes.rewards:Shapes",
        "how well coloured shapes match the prompt in colour, shape, count and position, 0 to 1, from pixels",
    )
    yield Provides(
        "shapes-correct",
        ShapesSpec,
        "flowfactory_plugin_shapes.rewards:ShapesCorrect",
        "1 if colours, shapes, count and positions all match the prompt, otherwise 0, from pixels",
    )
