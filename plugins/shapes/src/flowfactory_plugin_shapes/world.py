"""A small procedural world: coloured shapes on a plain background, and the sentences that describe them.

A `Scene` is what a prompt says. `caption` writes the prompt, `parse` reads it back, `render` draws one of the many
images that fit it. Lengths are in pixels of a 32 x 32 image, x to the right and y down, pixel centres at `i + 0.5`.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import attrs
import numpy as np
from numpy.typing import NDArray

SIZE = 32
BACKGROUND = np.array([0.94, 0.94, 0.94], dtype=np.float32)
COLOURS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "red": (0.88, 0.12, 0.12),
        "green": (0.12, 0.66, 0.22),
        "blue": (0.12, 0.22, 0.90),
        "yellow": (0.96, 0.86, 0.08),
        "purple": (0.58, 0.16, 0.76),
        "cyan": (0.10, 0.84, 0.94),
    }
)
SHAPES = ("circle", "square", "triangle")
NUMBERS: Mapping[str, int] = MappingProxyType({"a": 1, "two": 2, "three": 3})
# The direction from the second thing to the first, (x, y).
RELATIONS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
)
# By the number of objects: the least and the greatest radius of each, and how far it may be off its place.
ROOM: Mapping[int, tuple[float, float, float]] = MappingProxyType(
    {1: (7.0, 8.5, 2.0), 2: (4.5, 5.0, 0.8), 3: (4.1, 4.6, 0.8)}
)
WORDS = ("a", "two", "three", *COLOURS, *SHAPES, *(f"{shape}s" for shape in SHAPES))
WORDS += ("and", "left", "right", "of", "above", "below")


@attrs.frozen
class Thing:
    """One noun phrase: `count` equal shapes of one colour."""

    colour: str = attrs.field(validator=attrs.validators.in_(COLOURS))
    shape: str = attrs.field(validator=attrs.validators.in_(SHAPES))
    count: int = attrs.field(default=1, validator=attrs.validators.in_((1, 2, 3)))


def _tuple(things: Iterable[Thing]) -> tuple[Thing, ...]:
    return tuple(things)


@attrs.frozen
class Scene:
    """What a prompt says: one thing, or two different single things, possibly with a relation between them."""

    things: tuple[Thing, ...] = attrs.field(converter=_tuple)
    relation: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.in_(RELATIONS))
    )

    def __attrs_post_init__(self) -> None:
        if len(self.things) not in (1, 2):
            raise ValueError(f"a scene has one or two things, not {len(self.things)}")
        if len(self.things) == 1 and self.relation:
            raise ValueError(f"{self.relation!r} needs two things")
        if len(self.things) == 2 and (any(t.count != 1 for t in self.things) or len(set(self.things)) == 1):
            raise ValueError("a scene of two things has one of each, and they differ")

    @property
    def objects(self) -> tuple[tuple[str, str], ...]:
        """`(colour, shape)` of every object to be seen, in the order of the prompt."""
        return tuple((thing.colour, thing.shape) for thing in self.things for _ in range(thing.count))


def caption(scene: Scene) -> str:
    """The prompt that describes `scene`: "a red circle", "two blue squares", "a red circle above a cyan square"."""
    words = {number: word for word, number in NUMBERS.items()}
    phrases = [f"{words[t.count]} {t.colour} {t.shape}{'s' * (t.count > 1)}" for t in scene.things]
    return f" {scene.relation or 'and'} ".join(phrases)


_PHRASE = rf"({'|'.join(NUMBERS)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(s?)"
_PROMPT = re.compile(rf"{_PHRASE}(?: (and|{'|'.join(RELATIONS)}) {_PHRASE})?")


def parse(prompt: str) -> Scene:
    """The scene that `prompt` describes; the inverse of `caption`.

    Raises `ValueError` for a sentence outside this small grammar.
    """
    match = _PROMPT.fullmatch(" ".join(prompt.lower().split()).rstrip("."))
    if match is None:
        raise ValueError(f"{prompt!r} is no prompt of the shapes world; one is 'a red circle left of a cyan square'")
    fields = match.groups()
    phrases = [fields[0:4], fields[5:9]] if fields[4] else [fields[0:4]]
    if any((number == "a") == bool(plural) for number, _, _, plural in phrases):
        raise ValueError(f"{prompt!r}: number and noun disagree")
    things = [Thing(colour, shape, NUMBERS[number]) for number, colour, shape, _ in phrases]
    return Scene(things, fields[4] if fields[4] in RELATIONS else None)


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, size: int = SIZE) -> NDArray[np.float32]:
    """How much of each pixel the shape covers, anti-aliased, `(..., size, size)` in [0, 1].

    `x`, `y`, `radius` are `(...)`: the centroid, and the radius of the circle with the same area.
    """
    x, y, radius = (np.asarray(value, dtype=np.float32)[..., None, None] for value in (x, y, radius))
    centres = np.arange(size, dtype=np.float32) + 0.5
    dx, dy = centres - x, centres[:, None] - y
    if shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - radius
    elif shape == "square":
        distance = np.maximum(abs(dx), abs(dy)) - radius * (np.sqrt(np.pi) / 2)
    else:
        inradius = radius * np.sqrt(np.pi / (3 * np.sqrt(3)))
        distance = np.maximum(dy, abs(dx) * (np.sqrt(3) / 2) - dy / 2) - inradius
    covered: NDArray[np.float32] = np.clip(0.5 - distance, 0, 1).astype(np.float32)
    return covered


def layout(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """`(objects, 3)`: x, y and radius of each object, drawn at random among those the prompt allows."""
    count = len(scene.objects)
    low, high, jitter = ROOM[count]
    if count == 1:
        places = np.zeros((1, 2))
    elif count == 2:
        towards_first = RELATIONS[scene.relation] if scene.relation else list(RELATIONS.values())[rng.integers(4)]
        places = 8.0 * np.array([towards_first, np.negative(towards_first)])
    else:
        places = np.array([[-8.0, -7.0], [8.0, -7.0], [0.0, 7.0]]) * (1, rng.choice([-1, 1]))
    places = SIZE / 2 + places + rng.uniform(-jitter, jitter, places.shape)
    # Objects of one scene share their size, so that size never tells them apart.
    return np.column_stack([places, np.full(count, rng.uniform(low, high))])


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """One image of `scene`, `(32, 32, 3)` float32 in [0, 1]."""
    image = np.broadcast_to(BACKGROUND, (SIZE, SIZE, 3)).copy()
    for (colour, shape), (x, y, radius) in zip(scene.objects, layout(scene, rng), strict=True):
        alpha = coverage(shape, x, y, radius)[..., None]
        image = image * (1 - alpha) + alpha * np.array(COLOURS[colour], dtype=np.float32)
    return image


def sample(rng: np.random.Generator) -> Scene:
    """A random scene: 45 % one object, 30 % two or three alike, 10 % two different ones, 15 % with a relation."""
    kind = rng.choice(4, p=[0.45, 0.30, 0.10, 0.15])
    first = Thing(_pick(COLOURS, rng), _pick(SHAPES, rng), int(rng.integers(2, 4)) if kind == 1 else 1)
    if kind < 2:
        return Scene([first])
    second = first
    while second == first:
        second = Thing(_pick(COLOURS, rng), _pick(SHAPES, rng))
    return Scene([first, second], _pick(RELATIONS, rng) if kind == 3 else None)


def _pick(names: Mapping[str, object] | Sequence[str], rng: np.random.Generator) -> str:
    return list(names)[rng.integers(len(names))]


# Six of the eighteen combinations of colour and shape, each colour and each shape in the same number of them.
HELD_OUT = frozenset((colour, SHAPES[i % 3]) for i, colour in enumerate(COLOURS))


def prompts(split: str, two_things: int = 36) -> list[str]:
    """The prompts of `split`, "train" or "eval": all single things, then `two_things` scenes of two things.

    A prompt that names a combination of `HELD_OUT` is in "eval", every other one in "train", so the splits are
    disjoint and no trained prompt shows a combination that is evaluated. The scenes of two things are a fixed
    random choice among all there are, a third of them without a relation.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split is 'train' or 'eval', not {split!r}")
    alone = [Scene([t]) for t in _things((1, 2, 3))]
    chosen = [s for s in alone if _held_out(s) == (split == "eval")]
    pairs = [s for s in _pairs() if _held_out(s) == (split == "eval")]
    rng = np.random.default_rng(20)
    for related, number in ((False, two_things // 3), (True, two_things - two_things // 3)):
        kind = [s for s in pairs if bool(s.relation) == related]
        chosen += [kind[i] for i in sorted(rng.choice(len(kind), number, replace=False))]
    return [caption(s) for s in chosen]


def _things(counts: Sequence[int]) -> list[Thing]:
    return [Thing(c, s, n) for n, c, s in itertools.product(counts, COLOURS, SHAPES)]


def _pairs() -> Iterator[Scene]:
    for first, second in itertools.permutations(_things((1,)), 2):
        yield from (Scene([first, second], relation) for relation in (None, *RELATIONS))


def _held_out(scene: Scene) -> bool:
    return not HELD_OUT.isdisjoint(scene.objects)
