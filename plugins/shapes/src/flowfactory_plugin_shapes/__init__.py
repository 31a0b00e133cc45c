"""The embedded default of flowfactory: a small world of coloured shapes, a reward that reads pixels, a checkpoint."""

from collections.abc import Iterable

import attrs
from flowfactory import DifferentiableSpec, Provides, hookimpl


@attrs.frozen
class ShapesSpec:
    """The rewards of the shapes world take no keys of their own."""


@attrs.frozen(kw_only=True)
class ColoursSpec(DifferentiableSpec):
    """Nor does the one that has a gradient."""


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
    yield Provides(
        "shapes-colours",
        ColoursSpec,
        "flowfactory_plugin_shapes.colours:Colours",
        "whether each colour takes as much of the image as the prompt's world gives it, 0 to 1, with a gradient",
    )
