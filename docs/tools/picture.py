"""The picture of the house, drawn from its floors and from what its wings say of themselves.

`python docs/tools/picture.py docs/images/architecture.svg`. The floors and what never imports torch are those that
`pyproject.toml` has import-linter hold; the words are the first of each wing's docstring.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "core" / "src" / "flowfactory"
CORE = ("contracts", "discovery")
"""The minimal core: what the whole ecosystem stands on."""

WIDTH, HEIGHT, GAP, EDGE, TOP = 860, 44, 8, 24, 52
LETTER = 6.4
"""The most that a small letter is wide, on average."""

STYLE = """
  text { font: 14px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1c2024; text-anchor: middle; }
  .small { font-size: 11.5px; fill: #50565c; }
  .left { text-anchor: start; }
  .torch { fill: #ffffff; stroke: #8a939b; stroke-width: 1.2; }
  .partly { fill: #eff5fa; stroke: #0072b2; stroke-width: 1.2; stroke-dasharray: 5 3; }
  .never { fill: #d9e9f7; stroke: #0072b2; stroke-width: 1.4; }
  .core { fill: none; stroke: #b45309; stroke-width: 2.4; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e7eaed; }
    .small { fill: #aab2b9; }
    .torch { fill: #22272c; stroke: #6b747c; }
    .partly { fill: #182633; stroke: #4aa8e8; }
    .never { fill: #12324a; stroke: #4aa8e8; }
    .core { stroke: #f0a04b; }
  }
"""
LEGEND = {"never": "never torch", "partly": "in part", "torch": "may import torch", "core": "the minimal core"}


@attrs.frozen
class Box:
    """A wing in the picture. words: what it is for, as far as there is room. kind: whether it imports torch."""

    name: str
    words: str
    kind: str
    x: float
    y: float
    width: float


def floors() -> list[list[str]]:
    """The wings of each floor, from the top down."""
    return [[name.strip() for name in layer.split("|")] for layer in _contracts()["floors"]["layers"]]


def boxes() -> list[Box]:
    """Every wing, each floor as wide as the picture."""
    return [box for number, names in enumerate(floors()) for box in _floor(names, TOP + number * (HEIGHT + GAP))]


def _floor(names: Sequence[str], y: float) -> Iterator[Box]:
    width = (WIDTH - 2 * EDGE - GAP * (len(names) - 1)) / len(names)
    for place, name in enumerate(names):
        words = _words(name, int((width - 2 * GAP) / LETTER))
        yield Box(name, words, _kind(name), EDGE + place * (width + GAP), y, width)


def _contracts() -> Mapping[str, Mapping[str, Sequence[str]]]:
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["id"]: contract for contract in workspace["tool"]["importlinter"]["contracts"]}


def _kind(name: str) -> str:
    light = [module.removeprefix("flowfactory.") for module in _contracts()["light"]["source_modules"]]
    if name in light:
        return "never"
    return "partly" if any(module.startswith(f"{name}.") for module in light) else "torch"


def _words(name: str, most: int) -> str:
    """The longest beginning of a wing's first sentence that has room and ends where the sentence pauses."""
    path = HOUSE / name / "__init__.py"
    about = ast.get_docstring(ast.parse((path if path.exists() else HOUSE / f"{name}.py").read_text(encoding="utf-8")))
    assert about is not None
    sentence = re.split(r"\.(?:\s|$)", " ".join(about.split()))[0]
    pauses = [*(match.start() for match in re.finditer("[,:;]", sentence)), len(sentence)]
    return sentence[: max(end for end in pauses if end <= most)].replace("`", "")


def picture() -> str:
    """The whole file."""
    everything = boxes()
    height = max(box.y for box in everything) + HEIGHT + EDGE / 2
    lines = [*_legend(), *(line for box in everything for line in _drawn(box)), *_frame(everything)]
    size = f'viewBox="0 0 {WIDTH} {height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="The wings of core, by floors">'
    return "\n".join([head, f"<style>{STYLE}</style>", *lines, "</svg>", ""])


def _legend() -> Iterator[str]:
    yield f'<text class="small left" x="{EDGE}" y="28">A wing imports only from wings below it.</text>'
    for x, (kind, words) in zip((318, 444, 540, 694), LEGEND.items(), strict=True):
        yield f'<rect class="{kind}" x="{x}" y="16" width="18" height="16" rx="4"/>'
        yield f'<text class="small left" x="{x + 25}" y="28">{words}</text>'


def _drawn(box: Box) -> Iterator[str]:
    middle = f"{box.x + box.width / 2:g}"
    yield f'<rect class="{box.kind}" x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{HEIGHT}" rx="7"/>'
    yield f'<text x="{middle}" y="{box.y + 19:g}">{box.name}</text>'
    yield f'<text class="small" x="{middle}" y="{box.y + 36:g}">{escape(box.words)}</text>'


def _frame(everything: Sequence[Box]) -> Iterator[str]:
    for box in everything:
        if box.name in CORE:
            place = f'x="{box.x - 4:g}" y="{box.y - 3:g}" width="{box.width + 8:g}" height="{HEIGHT + 6}"'
            yield f'<rect class="core" {place} rx="9"/>'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
