"""Kept samples as pictures inside a page: cards to step through by epoch, within a limit of bytes. Imports no torch."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs
from PIL import Image

from flowfactory.report.chart import number
from flowfactory.runs.history import History, Shot
from flowfactory.runs.pictures import PictureError, opened

CARDS = 16
"""Most prompts (held-out) or samples (training) of a gallery."""
EPOCHS = 40
"""Most epochs of a gallery."""
SIDE = 256
"""Most pixels of a frame's longer side."""
FRAMES = 16
"""Most frames of a video."""
LIMIT = 24 << 20
"""Most bytes of pictures in a page, about."""
MISSING = "#c8c8c8"
LOSSLESS = 32 << 10
"""A picture whose PNG has more bytes is embedded as JPEG."""


@attrs.frozen
class Tile:
    """One picture.

    data: a `data:` address. width, height: of one frame. scores: label, value and change since the first, in words.
    words: what rewards said beside them, by name.
    """

    epoch: int
    prompt: str
    data: str
    width: int
    height: int
    frames: int
    scores: tuple[tuple[str, str, str], ...]
    words: tuple[tuple[str, str], ...] = ()


@attrs.frozen
class Column:
    """The pictures of one run in one card, by epoch."""

    run: str
    color: int
    tiles: tuple[Tile, ...]


@attrs.frozen
class Card:
    """What stays in its place while epochs go by. prompt: empty where it changes with them."""

    prompt: str
    columns: tuple[Column, ...]


@attrs.frozen
class Gallery:
    """Cards, the epochs one can step through, and what was left out of the page."""

    title: str
    about: str
    epochs: tuple[int, ...]
    cards: tuple[Card, ...]
    video: bool
    left_out: str


def galleries(runs: Sequence[History]) -> list[Gallery]:
    """Held-out samples of all runs side by side, and the training samples of each; those without any are left out."""
    made = [
        _held_out(runs, LIMIT // 2),
        *(_training(run, color, LIMIT // 2 // len(runs)) for color, run in enumerate(runs)),
    ]
    return [gallery for gallery in made if gallery.cards]


def _held_out(runs: Sequence[History], limit: int) -> Gallery:
    """A card for each prompt, and for each time it occurs; in it a column for each run that has it."""
    columns: dict[tuple[str, int], list[Column]] = {}
    notes = []
    for color, run in enumerate(runs):
        tiles, note = _tiles(run, "eval", limit // len(runs))
        notes.append(note)
        seen = Counter[str]()
        for row in tiles:
            seen[row[0].prompt] += 1
            columns.setdefault((row[0].prompt, seen[row[0].prompt]), []).append(Column(run.title, color, row))
    cards = [Card(prompt, tuple(found)) for (prompt, _), found in columns.items()]
    about = "The same prompts and noise at every evaluation; below, the scores and their change since the first."
    return _gallery("Held-out samples", about, cards, notes)


def _training(run: History, color: int, limit: int) -> Gallery:
    rows, note = _tiles(run, "epoch", limit)
    cards = [Card("", (Column(run.title, color, row),)) for row in rows]
    return _gallery(
        f"Training samples: {run.title}", "The first samples of each epoch, with their scores.", cards, [note]
    )


def _gallery(title: str, about: str, cards: Sequence[Card], notes: Sequence[str]) -> Gallery:
    tiles = [tile for card in cards for column in card.columns for tile in column.tiles]
    epochs = tuple(sorted({tile.epoch for tile in tiles}))
    left_out = "; ".join(note for note in notes if note)
    return Gallery(title, about, epochs, tuple(cards), any(tile.frames > 1 for tile in tiles), left_out)


def _tiles(run: History, kind: str, limit: int) -> tuple[list[tuple[Tile, ...]], str]:
    """For each place its tiles by epoch, as many epochs as the limit admits; and in words what was left out."""
    epochs = list(run.kept(kind))
    if not epochs:
        return [], ""
    first = run.shots(kind, epochs[0], CARDS)
    pictures = [(epochs[0], shot, _embedded(shot)) for shot in first]
    cost = sum(len(tile.data) for _, _, tile in pictures) or 1
    chosen = spaced(epochs, max(1, min(EPOCHS, limit // cost)))
    rows: list[list[Tile]] = [[attrs.evolve(tile, epoch=epochs[0])] for _, _, tile in pictures]
    for epoch in chosen[1:]:
        for row, before, shot in zip(rows, first, run.shots(kind, epoch, CARDS), strict=False):
            # Only where the prompt is the same can scores be compared.
            scores = before.scores if kind == "eval" and shot.prompt == before.prompt else None
            row.append(attrs.evolve(_embedded(shot, scores), epoch=epoch))
    return [tuple(row) for row in rows], _left_out(run, kind, epochs, chosen, len(first))


def _left_out(run: History, kind: str, epochs: Sequence[int], chosen: Sequence[int], cards: int) -> str:
    said = []
    total = len(run.shots(kind, epochs[0], 1 << 30))
    if cards < total:
        said.append(f"{cards} of {total} kept samples")
    if len(chosen) < len(epochs):
        said.append(f"{len(chosen)} of {len(epochs)} epochs")
    return f"{run.title}: {' and '.join(said)} are in this page, the rest in the run's folder" if said else ""


def spaced(items: Sequence[int], most: int) -> list[int]:
    """At most `most` items, evenly spread, the first and, where two are allowed, the last among them."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _embedded(shot: Shot, before: Mapping[str, float | None] | None = None) -> Tile:
    """A sample's picture, no larger than the limits, and its scores in words; grey where the picture is damaged."""
    first = before or {}
    scores = tuple((label, _score(value), _change(value, first.get(label))) for label, value in shot.scores.items())
    try:
        picture = opened(shot.file)
    except PictureError:
        picture = Image.new("RGB", (SIDE // 4, SIDE // 4), MISSING)
    frames = shot.frames if picture.width % shot.frames == 0 else 1
    width, height = picture.width // frames, picture.height
    if frames <= FRAMES and max(width, height) <= SIDE:
        strip = picture
    else:
        strip, frames = _smaller(picture, frames)
    return Tile(
        0, shot.prompt, _encoded(strip), strip.width // frames, strip.height, frames, scores, tuple(shot.words.items())
    )


def _smaller(strip: Image.Image, frames: int) -> tuple[Image.Image, int]:
    """A strip of at most `FRAMES` frames, each at most `SIDE` pixels wide and high."""
    width, height = strip.width // frames, strip.height
    scale = min(1.0, SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    chosen = spaced(range(frames), FRAMES)
    made = Image.new("RGB", (size[0] * len(chosen), size[1]))
    for place, frame in enumerate(chosen):
        cut = strip.crop((frame * width, 0, (frame + 1) * width, height))
        made.paste(cut if scale == 1 else cut.resize(size, Image.Resampling.LANCZOS), (place * size[0], 0))
    return made, len(chosen)


def _encoded(picture: Image.Image) -> str:
    lossless, small = io.BytesIO(), io.BytesIO()
    picture.save(lossless, "png")
    if lossless.tell() <= LOSSLESS:
        return _data("png", lossless.getvalue())
    picture.save(small, "jpeg", quality=88)
    return _data("jpeg", small.getvalue())


def _data(form: str, content: bytes) -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def _score(value: float | None) -> str:
    return "none" if value is None else number(value)


def _change(value: float | None, before: float | None) -> str:
    if value is None or before is None:
        return ""
    difference = value - before
    sign = "+" if difference > 0 else "−" if difference < 0 else "±"
    return f"{sign}{number(abs(difference))}"
