"""The world of the checkpoint: a word of three or four capital letters, dark on light, in one font, evenly spaced.

`prompt` asks for a word, `asked` reads the word back, `render` draws one of the many images that show it.
"""

import functools
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 64, 16
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LENGTHS = (3, 4)
POINTS = (13, 14, 15)
PITCH = 16  # pixels from one letter's middle to the next one's, whatever the letters: as far as two tokens are wide
AWAY = (1.0, 0.5)  # how far the middle of a word may be from the middle of the image, in pixels: across, down
MARGIN = 8  # Pillow cuts letters that begin at negative fractions of a pixel, so the page is larger than the image
PAPER = (0.88, 0.98)
INK = (0.0, 0.25)
_PROMPT = re.compile(rf'a sign that says "([{LETTERS}]{{{LENGTHS[0]},{LENGTHS[-1]}}})"')


def prompt(word: str) -> str:
    """The sentence that asks for a word."""
    return f'a sign that says "{word}"'


def asked(text: str) -> str:
    """The word that a sentence asks for.

    Raises:
        ValueError: the sentence is none of this world.
    """
    found = _PROMPT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no prompt of the glyphs world, such as {prompt('MOON')!r}")
    return found[1]


def spell(rng: np.random.Generator) -> str:
    """Random letters, as many as a word has; most are no words."""
    return "".join(rng.choice(list(LETTERS), size=rng.choice(LENGTHS)))


@functools.cache
def _font(points: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(points)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def ink(word: str, points: int, across: float = 0.0, down: float = 0.0) -> NDArray[np.float32]:
    """How much of each pixel `(16, 64)` a word covers, in [0, 1], if its middle is so far from the image's."""
    page = Image.new("L", (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN))
    draw = ImageDraw.Draw(page)
    for place, letter in enumerate(word):
        middle = page.width / 2 + PITCH * (place - (len(word) - 1) / 2) + across, page.height / 2 + down
        draw.text(middle, letter, font=_font(points), fill=255, anchor="mm")
    inside = page.crop((MARGIN, MARGIN, MARGIN + WIDTH, MARGIN + HEIGHT))
    return np.asarray(inside, dtype=np.float32) / 255


def render(word: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """An image `(16, 64, 3)` in [0, 1] that shows a word, somewhere near the middle, in one of many dark greys."""
    paper, dark = rng.uniform(*PAPER, 3), rng.uniform(*INK, 3)
    places = [rng.uniform(-away, away) for away in AWAY]
    covered = ink(word, int(rng.choice(POINTS)), *places)[..., None]
    return (paper * (1 - covered) + dark * covered).astype(np.float32)
