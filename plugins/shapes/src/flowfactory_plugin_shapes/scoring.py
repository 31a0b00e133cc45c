"""Grade an image of the shapes world against its prompt, from the pixels alone.

The image is segmented by colour, each connected component is compared with the three ideal shapes of its own area
and centroid, and the objects found are matched with the objects asked for.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowfactory_plugin_shapes.world import BACKGROUND, COLOURS, RELATIONS, SHAPES, SIZE, Scene, coverage, parse

SPECK = 6  # px: smaller components are neither objects nor clutter
AREA = (26.0, 330.0)  # px: what counts as one object; the world draws 53 to 227
MUDDY = 0.30  # distance from a pixel to the line from the background to its colour, in RGB
FIT = (0.60, 0.88)  # the overlap with an ideal shape where shape credit begins, and where it is full
CLUTTER = 0.15  # the part of the foreground that may be clutter in a correct image
MARGIN = 3.0  # px between two centroids along the axis of their relation

_NAMES = tuple(COLOURS)
_RAYS = np.array([COLOURS[name] for name in _NAMES], dtype=np.float32) - BACKGROUND
_RAYS_SQUARED = np.sum(_RAYS**2, axis=1)


@attrs.frozen
class Grade:
    """How well an image fits its prompt: `graded` in [0, 1], and whether everything about it is right."""

    graded: float
    correct: bool


@attrs.frozen
class Found:
    """One object seen in an image: its colour, the overlap with each ideal shape in [0, 1], and its centroid in px."""

    colour: str
    fits: dict[str, float]
    x: float
    y: float

    @property
    def shape(self) -> str:
        """The shape that fits best."""
        return max(self.fits, key=self.fits.__getitem__)


def grade(prompt: str, image: NDArray[np.float32]) -> Grade:
    """Grade `image`, `(32, 32, 3)` in [0, 1], against `prompt`.

    Every object asked for earns 1/2 for its colour and 1/2 for its shape, in the best assignment of the objects
    found; the mean is over the larger of the two numbers, so that a missing or a superfluous object costs its share.
    A wrong relation costs 30 %, clutter its part of the foreground. Raises `ValueError` for a prompt outside the world.
    """
    scene = _scene(prompt)
    found, clutter = find(image)
    matched, order = _assign(scene.objects, found)
    related = scene.relation is None or _holds(scene.relation, [found[i] for i in order])
    graded = matched / max(len(scene.objects), len(found), 1) * (1.0 if related else 0.7) * (1.0 - clutter)
    right = len(found) == len(scene.objects) and all(
        (found[i].colour, found[i].shape) == wanted and found[i].fits[wanted[1]] > sum(FIT) / 2
        for wanted, i in zip(scene.objects, order, strict=True)
    )
    return Grade(float(graded), bool(right and related and clutter <= CLUTTER))


def find(image: NDArray[np.float32]) -> tuple[list[Found], float]:
    """The objects in `image`, `(32, 32, 3)`, and the part of its foreground in [0, 1] that belongs to none of them.

    Each pixel lies near a line from the background to one of the colours; how far along is its opacity.
    A pixel near none of the lines, and a component too small or too large for an object, is clutter.
    """
    if image.shape != (SIZE, SIZE, 3):
        raise ValueError(f"an image of the shapes world is ({SIZE}, {SIZE}, 3), not {image.shape}")
    offset = image.reshape(-1, 3) - BACKGROUND
    projected = offset @ _RAYS.T
    along = np.clip(projected / _RAYS_SQUARED, 0, 1)
    away = np.sum(offset**2, axis=1)[:, None] - (2 * projected - along * _RAYS_SQUARED) * along
    nearest = np.argmin(away, axis=1)
    rows = np.arange(len(nearest))
    opacity = along[rows, nearest]
    # Far from every line, yet not background: black, brown, noise.
    muddy = away[rows, nearest] > MUDDY**2
    solid = (opacity > 0.5) & ~muddy
    objects, claimed = _objects(nearest.reshape(SIZE, SIZE), opacity.reshape(SIZE, SIZE), solid.reshape(SIZE, SIZE))
    foreground = np.count_nonzero(solid | muddy)
    return objects, 1.0 - claimed / foreground if foreground else 0.0


def _objects(colour: NDArray[Any], opacity: NDArray[Any], solid: NDArray[Any]) -> tuple[list[Found], int]:
    """The components that may be objects, and the number of solid pixels in them (specks are forgiven)."""
    components, claimed = [], 0
    for index in np.unique(colour[solid]):
        labels, number = ndimage.label(solid & (colour == index))
        for label, box in enumerate(ndimage.find_objects(labels, number), 1):
            mask = labels[box] == label
            pixels = int(np.count_nonzero(mask))
            if pixels <= SPECK:
                claimed += pixels
            elif AREA[0] <= pixels <= AREA[1]:
                claimed += pixels
                components.append((index, _soft(labels == label, opacity)))
    if not components:
        return [], claimed
    return _describe([_NAMES[index] for index, _ in components], np.stack([soft for _, soft in components])), claimed


def _soft(mask: NDArray[Any], opacity: NDArray[Any]) -> NDArray[np.float32]:
    """The opacity of one component with its anti-aliased rim, `(32, 32)`."""
    return np.where(ndimage.binary_dilation(mask), opacity, 0.0)


def _describe(colours: Sequence[str], soft: NDArray[Any]) -> list[Found]:
    """Measure components given as opacities `(K, 32, 32)`: centroid, area and overlap with the ideal shapes."""
    area = soft.sum(axis=(1, 2))
    centres = np.arange(SIZE) + 0.5
    x = soft.sum(axis=1) @ centres / area
    y = soft.sum(axis=2) @ centres / area
    fits = {}
    for shape in SHAPES:
        ideal = coverage(shape, x, y, np.sqrt(area / np.pi))
        fits[shape] = np.minimum(soft, ideal).sum(axis=(1, 2)) / np.maximum(soft, ideal).sum(axis=(1, 2))
    return [
        Found(name, {shape: float(fits[shape][k]) for shape in SHAPES}, float(x[k]), float(y[k]))
        for k, name in enumerate(colours)
    ]


def _assign(wanted: Sequence[tuple[str, str]], found: Sequence[Found]) -> tuple[float, tuple[int, ...]]:
    """The greatest total credit, and which found object each wanted one got in the order of the prompt.

    Fewer objects found than wanted leave an order that is shorter, in which nothing is related.
    """
    credit = [[_credit(colour, shape, thing) for thing in found] for colour, shape in wanted]
    if len(found) < len(wanted):
        # Assign the other way round: every found object to a different wanted one.
        orders = itertools.permutations(range(len(wanted)), len(found))
        return max((sum(credit[w][f] for f, w in enumerate(order)), ()) for order in orders)
    # Beyond six objects the share of each is so small that the first six decide.
    orders = itertools.permutations(range(min(len(found), 6)), len(wanted))
    return max(((sum(credit[w][f] for w, f in enumerate(order)), order) for order in orders), key=lambda best: best[0])


def _credit(colour: str, shape: str, thing: Found) -> float:
    """1/2 for the colour and up to 1/2 for the shape; a shape that fits another ideal better earns a third of it."""
    low, high = FIT
    fit = min(max((thing.fits[shape] - low) / (high - low), 0.0), 1.0)
    return 0.5 * (thing.colour == colour) + 0.5 * fit * (1.0 if thing.shape == shape else 1 / 3)


def _holds(relation: str, pair: Sequence[Found]) -> bool:
    if len(pair) != 2:
        return False
    first, second = pair
    dx, dy = first.x - second.x, first.y - second.y
    right, down = RELATIONS[relation]
    return dx * right + dy * down > max(MARGIN, abs(dx * down) + abs(dy * right))


@cache
def _scene(prompt: str) -> Scene:
    return parse(prompt)
