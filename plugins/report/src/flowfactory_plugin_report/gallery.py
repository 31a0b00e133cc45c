"""Kept samples as pictures inside a page: cards to step through by epoch, within a limit of bytes. Imports no torch."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import attrs
from flowfactory import History, Shot
from PIL import Image

from flowfactory_plugin_report.numbers import number

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
COLOURS, LOSSLESS = 4096, 32 << 10
"""A picture of more colours, or whose PNG has more bytes, is embedded as JPEG."""


@attrs.frozen
class Tile:
    """One picture.

    data: its address, a `data:` one in a page that needs nothing but itself. width, height: of one frame.
    scores: label, value and change since the first, in words. values: the same values as numbers, and the changes.
    file: the picture at its full size. words: what rewards said beside scores, by name.
    """

    epoch: int
    prompt: str
    data: str
    width: int
    height: int
    frames: int
    scores: tuple[tuple[str, str, str], ...]
    values: tuple[tuple[float | None, float | None], ...]
    file: Path
    words: Mapping[str, str]

    def links(self, page: Path) -> dict[str, str]:
        """Addresses of the picture at its full size, and of the film if there is one, as seen from a page's folder."""
        film = self.file.with_suffix(".mp4")
        found = {"picture": self.file} | ({"film": film} if film.is_file() else {})
        return {what: quote(os.path.relpath(file.absolute(), page.absolute())) for what, file in found.items()}


@attrs.frozen
class Picture:
    """A sample's picture in a page. data: its address. width, height: of one of its frames, side by side."""

    data: str
    width: int
    height: int
    frames: int


Embed = Callable[[Shot], Picture]
"""How a sample becomes a picture of a page."""


@attrs.frozen
class Limits:
    """How much a gallery holds. size: most bytes of all galleries' pictures, about."""

    cards: int
    epochs: int
    size: int


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


def galleries(runs: Sequence[History], embed: Embed | None = None, limits: Limits | None = None) -> list[Gallery]:
    """Held-out samples of all runs side by side, and the training samples of each; those without any are left out."""
    embed, limits = embed or embedded, limits or Limits(CARDS, EPOCHS, LIMIT)
    half = attrs.evolve(limits, size=limits.size // 2)
    made = [
        _held_out(runs, embed, half),
        *(
            _training(run, color, embed, attrs.evolve(half, size=half.size // len(runs)))
            for color, run in enumerate(runs)
        ),
    ]
    return [gallery for gallery in made if gallery.cards]


def _held_out(runs: Sequence[History], embed: Embed, limits: Limits) -> Gallery:
    """A card for each prompt, and for each time it occurs; in it a column for each run that has it."""
    columns: dict[tuple[str, int], list[Column]] = {}
    notes = {}
    for color, run in enumerate(runs):
        tiles, note = _tiles(run, "eval", embed, attrs.evolve(limits, size=limits.size // len(runs)))
        notes[run.title] = note
        seen = Counter[str]()
        for row in tiles:
            seen[row[0].prompt] += 1
            columns.setdefault((row[0].prompt, seen[row[0].prompt]), []).append(Column(run.title, color, row))
    cards = [Card(prompt, tuple(found)) for (prompt, _), found in columns.items()]
    about = "The same prompts and noise at every evaluation; below, the scores and their change since the first."
    return _gallery("Held-out samples", about, cards, notes)


def _training(run: History, color: int, embed: Embed, limits: Limits) -> Gallery:
    rows, note = _tiles(run, "epoch", embed, limits)
    cards = [Card("", (Column(run.title, color, row),)) for row in rows]
    return _gallery(
        f"Training samples: {run.title}",
        "The first samples of each epoch, with their scores.",
        cards,
        {run.title: note},
    )


def _gallery(title: str, about: str, cards: Sequence[Card], notes: Mapping[str, str]) -> Gallery:
    tiles = [tile for card in cards for column in card.columns for tile in column.tiles]
    epochs = tuple(sorted({tile.epoch for tile in tiles}))
    titles: dict[str, list[str]] = {}
    for run, note in notes.items():
        titles.setdefault(note, []).append(run)
    told = [f"{', '.join(runs)}: {note}" for note, runs in titles.items() if note]
    left_out = f"{'; '.join(told)} are in this page, the rest in the run's folder" if told else ""
    return Gallery(title, about, epochs, tuple(cards), any(tile.frames > 1 for tile in tiles), left_out)


def _tiles(run: History, kind: str, embed: Embed, limits: Limits) -> tuple[list[tuple[Tile, ...]], str]:
    """For each place its tiles by epoch, as many epochs as the limit admits; and in words what was left out."""
    epochs = list(run.kept(kind))
    if not epochs:
        return [], ""
    first = run.shots(kind, epochs[0], limits.cards)
    rows = [[_tile(epochs[0], shot, embed)] for shot in first]
    cost = sum(len(tile.data) for (tile,) in rows) or 1
    chosen = spaced(epochs, max(1, min(limits.epochs, limits.size // cost)))
    for epoch in chosen[1:]:
        for row, before, shot in zip(rows, first, run.shots(kind, epoch, limits.cards), strict=False):
            # Only where the prompt is the same can scores be compared.
            scores = before.scores if kind == "eval" and shot.prompt == before.prompt else None
            row.append(_tile(epoch, shot, embed, scores))
    return [tuple(row) for row in rows], _left_out(run, kind, epochs, chosen, len(first))


def _left_out(run: History, kind: str, epochs: Sequence[int], chosen: Sequence[int], cards: int) -> str:
    said = []
    total = len(run.shots(kind, epochs[0], 1 << 30))
    if cards < total:
        said.append(f"{cards} of {total} kept samples")
    if len(chosen) < len(epochs):
        said.append(f"{len(chosen)} of {len(epochs)} epochs")
    return " and ".join(said)


def spaced(items: Sequence[int], most: int) -> list[int]:
    """At most `most` items, evenly spread, the first and, where two are allowed, the last among them."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _tile(epoch: int, shot: Shot, embed: Embed, before: Mapping[str, float | None] | None = None) -> Tile:
    """A sample's picture and its scores."""
    first = before or {}
    scores = tuple((label, _score(value), _change(value, first.get(label))) for label, value in shot.scores.items())
    values = tuple((value, _difference(value, first.get(label))) for label, value in shot.scores.items())
    made = embed(shot)
    return Tile(
        epoch, shot.prompt, made.data, made.width, made.height, made.frames, scores, values, shot.file, shot.words
    )


def embedded(shot: Shot) -> Picture:
    """A sample's picture as a `data:` address."""
    small, frames = shrunk(shot)
    form, content = encoded(small)
    data = f"data:image/{form};base64,{base64.b64encode(content).decode()}"
    return Picture(data, small.width // frames, small.height, frames)


def shrunk(shot: Shot) -> tuple[Image.Image, int]:
    """A sample's picture, no larger than the limits, and how many frames it has; grey where it is damaged."""
    picture = shot.picture() or Image.new("RGB", (SIDE // 4, SIDE // 4), MISSING)
    frames = shot.frames if picture.width % shot.frames == 0 else 1
    if frames <= FRAMES and max(picture.width // frames, picture.height) <= SIDE:
        return picture, frames
    return _smaller(picture, frames)


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


def encoded(picture: Image.Image) -> tuple[str, bytes]:
    """A picture as a file of a page: its format, and its content."""
    lossless, small = io.BytesIO(), io.BytesIO()
    if picture.getcolors(COLOURS):  # a photograph's PNG takes ten times as long, and would be too large
        picture.save(lossless, "png")
        if lossless.tell() <= LOSSLESS:
            return "png", lossless.getvalue()
    picture.save(small, "jpeg", quality=88)
    return "jpeg", small.getvalue()


def _score(value: float | None) -> str:
    return "none" if value is None else number(value)


def _difference(value: float | None, before: float | None) -> float | None:
    return None if value is None or before is None else value - before


def _change(value: float | None, before: float | None) -> str:
    difference = _difference(value, before)
    if difference is None:
        return ""
    sign = "+" if difference > 0 else "−" if difference < 0 else "±"
    return f"{sign}{number(abs(difference))}"
