"""The reward `shapes-colours`: whether each colour takes as much of the image as it does in the world, with a gradient.

    a_c = sum over pixels of t_c softmax(-d² / heat)_c      t, d: how far along the line from background to colour c a
                                                            pixel lies, from 0 to 1, and how far away from it
    w_c = a_c, cut to the areas with which the world draws what the prompt asks for of colour c; 0 for other colours
    R   = sum_c min(a_c, w_c) / sum_c max(a_c, w_c)

Shapes, numbers and places do not count: a red circle earns as much as a red square of its size.
"""

from collections.abc import Sequence
from functools import cache
from math import pi

import torch
from flowfactory import DifferentiableReward, Row
from torch import Tensor
from torch.nn.functional import avg_pool2d

from flowfactory_plugin_shapes.world import BACKGROUND, COLOURS, ROOM, SIZE, parse

HEAT = 0.02
"""Squared distance in RGB; the colours lie 0.5 and more apart."""


class Colours(DifferentiableReward):
    """How far the amounts of paint agree, in [0, 1]."""

    reads = frozenset({"prompt", "media"})

    def value(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        if media.dim() != 4 or media.shape[2] != media.shape[3] or media.shape[2] % SIZE:
            raise ValueError(f"`shapes-colours` reads square images of 32, 64, … pixels, not {tuple(media.shape[1:])}")
        found = amounts(avg_pool2d(media.float(), media.shape[2] // SIZE))
        least, most = (torch.tensor(side).to(found) for side in zip(*(wanted(row.prompt) for row in rows), strict=True))
        right = torch.minimum(torch.maximum(found, least), most)
        return torch.minimum(found, right).sum(1) / torch.maximum(found, right).sum(1)


def amounts(images: Tensor) -> Tensor:
    """How many pixels of images `(B, 3, 32, 32)` are of each of the six colours, `(B, 6)`."""
    pixels = images.flatten(2).transpose(1, 2) - torch.from_numpy(BACKGROUND).to(images)
    rays = torch.tensor(list(COLOURS.values())).to(images) - torch.from_numpy(BACKGROUND).to(images)
    along = (pixels @ rays.T / (rays**2).sum(1)).clamp(0, 1)
    away = ((pixels[:, :, None] - along[..., None] * rays) ** 2).sum(3)
    return (along * (-away / HEAT).softmax(2)).sum(1)


@cache
def wanted(prompt: str) -> tuple[list[float], list[float]]:
    """The least and the greatest amount, in pixels, of each of the six colours in an image of the prompt."""
    objects = parse(prompt).objects
    counts = [sum(colour == name for colour, _ in objects) for name in COLOURS]
    low, high, _ = ROOM[len(objects)]
    return [pi * low**2 * count for count in counts], [pi * high**2 * count for count in counts]
