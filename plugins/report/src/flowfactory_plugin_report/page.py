"""The page as HTML: what a template and three scripts make of runs.

Prompts, labels and names come from anyone. Every text is escaped or set as text, none is handed to the library that
draws, and the page's own policy admits no script and no style but those whose hashes it states.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import jinja2
from flowfactory import History
from markupsafe import Markup

from flowfactory_plugin_report import drawing, tables
from flowfactory_plugin_report.curves import HELD_OUT, LEADING, TIME, Line, Panel, Section, best_epoch
from flowfactory_plugin_report.gallery import Gallery, Tile
from flowfactory_plugin_report.numbers import short

PAGE = "report.html"
SCRIPTS = ("charts.js", "gallery.js", "page.js")
EMPTY = ""
"""The library makes empty style sheets and fills them rule by rule, which is no text of anybody's."""


@attrs.frozen
class Live:
    """What a page says of a run that goes on, and what it is asked again by.

    version: changes whenever the files of the run do. newest: of the run's newest scores, in words.
    """

    version: str
    epoch: int
    epochs: int
    state: str
    left: str
    newest: str


def page(
    runs: Sequence[History],
    shown: Sequence[Section],
    pictures: Sequence[Gallery],
    folder: Path,
    live: Live | None = None,
    code: bool = True,
) -> str:
    """The whole page.

    Args:
        folder: where the page lies, which links to files start from. live: of a page that is served.
        code: whether the library that draws is in it; what is fetched by a page that has it already needs it no more.
    """
    style, script = _source("report.css"), "\n".join(map(_source, SCRIPTS))
    leading = [section for section in shown if section.name in LEADING]
    following = [section for section in shown if section.name not in LEADING]
    first, rest = (pictures, []) if live else (pictures[:1], pictures[1:])
    drawn = [*leading, *following]
    return _template().render(
        title=f"Report: {', '.join(run.title for run in runs)}",
        version=importlib.metadata.version("flowfactory-plugin-report"),
        date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        style=Markup(style),
        script=Markup(script),
        styles=[drawing.digest(style), drawing.digest(EMPTY)],
        scripts=[drawing.digest(script), drawing.digest(drawing.code())],
        library=Markup(drawing.packed()) if code else None,
        live=live,
        data={
            "runs": [run.title for run in runs],
            "sections": {section_id(s.name): _charts(s, runs) for s in drawn},
            "galleries": {section_id(g.title): _gallery(g, folder) for g in pictures},
            "version": live.version if live else None,
        },
        runs=runs,
        facts=[list(tables.facts(run)) for run in runs],
        table_of_runs=tables.table_of_runs(runs),
        differences=tables.differences(runs),
        leading=leading,
        following=following,
        first=first,
        rest=rest,
        times=tables.times(runs),
        numbers=tables.numbers(runs),
        versions=tables.versions(runs),
        TIME=TIME,
        id=section_id,
    )


def _template() -> jinja2.Template:
    pages = jinja2.PackageLoader("flowfactory_plugin_report", "pages")
    made = jinja2.Environment(loader=pages, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return made.get_template(PAGE)


def _source(name: str) -> str:
    return (Path(__file__).parent / "pages" / name).read_text(encoding="utf-8")


def section_id(text: str) -> str:
    """A name as an address within the page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def chart(panel: Panel) -> dict[str, Any]:
    """A chart as the page's script draws it. The parts of a stack are told each by itself."""
    lines = [_line(line, panel.stacked) for line in panel.lines]
    if panel.stacked:
        below = [[0.0] * len(panel.lines[0].points), *([p.value for p in line.points] for line in panel.lines)]
        for line, (under, top) in zip(lines, itertools.pairwise(below), strict=True):
            line["y"] = [short(t - u) for t, u in zip(top, under, strict=True)]
    return {"title": panel.title, "unit": panel.unit, "stacked": panel.stacked, "lines": lines}


def _charts(section: Section, runs: Sequence[History]) -> list[dict[str, Any]]:
    """All of a section; those of held-out scores tell the best epoch of each run."""
    charts = [chart(panel) for panel in section.panels]
    if section.name == HELD_OUT:
        for line in (line for made in charts for line in made["lines"]):
            best = best_epoch(runs[line["color"]])
            line["best"] = best[0] if best else None
    return charts


def _line(line: Line, stacked: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "label": line.label,
        "color": line.color,
        "x": [short(point.epoch) for point in line.points],
        "y": [short(point.value) for point in line.points],
    }
    if not stacked and any(math.isfinite(point.spread) and point.spread for point in line.points):
        made["band"] = [[short(low), short(high)] for low, high in line.band()]
    return made


def _gallery(gallery: Gallery, folder: Path) -> dict[str, Any]:
    """Cards as the page's script shows them."""
    cards = [
        {
            "prompt": card.prompt,
            "columns": [
                {"run": column.color, "tiles": [_tile(tile, folder) for tile in column.tiles]}
                for column in card.columns
            ],
        }
        for card in gallery.cards
    ]
    return {"epochs": gallery.epochs, "cards": cards, "video": gallery.video}


def _tile(tile: Tile, folder: Path) -> dict[str, Any]:
    scores = {
        label: [text, change, *(None if v is None else short(v) for v in values)]
        for (label, text, change), values in zip(tile.scores, tile.values, strict=True)
    }
    return {
        "epoch": tile.epoch,
        "prompt": tile.prompt,
        "data": tile.data,
        "size": [tile.width, tile.height, tile.frames],
        "scores": scores,
        "words": dict(tile.words),
        "links": tile.links(folder),
    }
