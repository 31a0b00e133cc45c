"""`flowfactory report`: one self-contained page about one run or several, and its curves as PNG. Imports no torch.

Prompts, labels and names come from anyone, so every text is escaped, and the page's own policy admits no script and no
style but those whose hashes it states, and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.metadata
import importlib.resources
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import jinja2
from markupsafe import Markup

from flowfactory.errors import RunError, shown
from flowfactory.report.chart import Chart, chart, number
from flowfactory.report.curves import Section, sections
from flowfactory.report.gallery import Gallery, galleries
from flowfactory.report.plots import draw, see
from flowfactory.runs import files
from flowfactory.runs.files import write, writing
from flowfactory.runs.history import History, read
from flowfactory.spec import toml

PAGE = "report.html"
HEAD = 4096
"""Bytes of a page in which its title is."""
LEADING = ("Reward", "Held-out evaluation")


@attrs.frozen
class Table:
    """Rows of cells under a head."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]


def report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page about the runs in `folders` to `out`, and its curves to `<name of out>-curves/` beside it.

    Raises:
        RunError: a folder is not that of a run, a file in it cannot be read, the page cannot be written, or something
            else lies in its place.
    """
    curves = out.with_name(f"{out.stem}-curves")
    _refuse_what_is_not_ours(out)
    see(curves)
    runs = read(folders)
    shown = sections(runs)
    content = page(runs, shown, galleries(runs)).encode()
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, content)
    draw(shown, curves)
    return out


def _refuse_what_is_not_ours(out: Path) -> None:
    with writing(out):
        if out.is_dir():
            raise RunError(f"{shown(out)} is a folder; --out names the page in it, such as {shown(out / PAGE)}")
        files.see(out)
        if not out.exists() or (out.is_symlink() and out.is_file()):
            return  # a link gives way, what it leads to stays
        if not out.is_file():
            raise RunError(f"{shown(out)} is not a file that a page could replace; name another --out")
        with out.open("rb") as file:
            head = file.read(HEAD)
    if not (head.startswith(b"<!doctype html>") and b"<title>Report: " in head):
        raise RunError(f"{shown(out)} is no report, and is not written over; name another --out")


def page(runs: Sequence[History], shown: Sequence[Section], pictures: Sequence[Gallery]) -> str:
    """The whole page as HTML."""
    style, script = _source("report.css"), _source("report.js")
    curves = [_charted(section) for section in shown]
    albums = [{"id": _id(g.title), **attrs.asdict(g, recurse=False)} for g in pictures]
    leading = [section for section in curves if section["name"] in LEADING]
    following = [section for section in curves if section["name"] not in LEADING]
    return _template().render(
        title=f"Report: {', '.join(run.title for run in runs)}",
        version=importlib.metadata.version("flowfactory"),
        date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        contents=_contents(leading, albums, following),
        runs=runs,
        overview=[{"title": run.title, "facts": list(facts(run)), "spec": _spec_text(run)} for run in runs],
        differences=differences(runs),
        leading=leading,
        following=following,
        galleries=albums,
        times=times(runs),
        numbers=_numbers(runs),
        versions=_versions(runs),
    )


def _template() -> jinja2.Template:
    pages = jinja2.PackageLoader("flowfactory.report", "pages")
    return jinja2.Environment(loader=pages, autoescape=True, undefined=jinja2.StrictUndefined).get_template(PAGE)


def _source(name: str) -> str:
    return (importlib.resources.files("flowfactory.report") / "pages" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _id(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _charted(section: Section) -> dict[str, Any]:
    charts: list[Chart] = [chart(panel) for panel in section.panels]
    return {
        "id": _id(section.name),
        "name": section.name,
        "about": section.about,
        "charts": charts,
        "quiet": section.quiet,
    }


def _contents(leading: Sequence[Any], albums: Sequence[Any], following: Sequence[Any]) -> Iterator[tuple[str, str]]:
    yield ("overview", "Overview")
    yield from ((section["id"], section["name"]) for section in leading)
    yield from ((album["id"], album["title"]) for album in albums[:1])
    yield from ((section["id"], section["name"]) for section in following)
    yield from ((album["id"], album["title"]) for album in albums[1:])
    yield ("plan", "Plan and versions")


# --- tables --------------------------------------------------------------------------------------------------------


def facts(run: History) -> Iterator[tuple[str, str]]:
    """What a run is, how far it came, and what it scored, in words."""
    spec = run.plan["spec"]
    yield "model", f"{spec['model']['name']}: {spec['model'].get('path', '')}"
    yield "trained", _tuning(spec)
    yield "trainer", spec["trainer"]["name"]
    yield "scheduler", spec["scheduler"]["name"]
    yield "rewards", ", ".join(f"{r.get('label', r['name'])} ({_counts(r.get('weight', 1.0))})" for r in spec["reward"])
    yield "epochs", f"{max(run.metrics, default=0)} of {spec['run']['epochs']}"
    for name in run.names():
        series = [(epoch, value) for epoch, value in run.series(name) if math.isfinite(value)]
        if (name == "eval/score" or (name.startswith("eval/") and name.endswith("/mean"))) and series:
            (first, before), (last, after) = series[0], series[-1]
            label = name.removeprefix("eval/").removesuffix("/mean")
            yield f"held-out {label}", f"{number(before)} (epoch {first}) → {number(after)} (epoch {last})"
    seconds = sum(value for name in run.names() if name.startswith("time/") for _, value in run.series(name))
    yield "time", f"{_duration(seconds)} on {_count(run.plan['world'], 'process')}"
    yield "digest", run.plan["digest"][:16]


def _counts(weight: float) -> str:
    return f"weight {weight:g}" if weight else "watched only"


def _tuning(spec: Mapping[str, Any]) -> str:
    table = spec.get("lora", spec.get("full", {}))
    began = f", begun with {table['from']}" if "from" in table else ""
    rank = f" of rank {table['rank']}" if "rank" in table else ""
    return (f"LoRA{rank}" if "lora" in spec else "all weights") + began


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 'es'}"


def _spec_text(run: History) -> str:
    return toml.dumps(run.plan["spec"])


def differences(runs: Sequence[History]) -> Table:
    """Keys of the specs that are not the same in all runs, the run's name apart."""
    specs = [dict(_flat(run.plan["spec"])) for run in runs]
    keys = list(dict.fromkeys(key for spec in specs for key in spec))
    unlike = [key for key in keys if key != "run.name" and len({spec.get(key) for spec in specs}) > 1]
    return Table(
        ("key", *(run.title for run in runs)), [(key, *(spec.get(key, "") for spec in specs)) for key in unlike]
    )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key as `table.key`, `reward[0].weight`, with its value as TOML."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for place, item in enumerate(value):
            yield from _flat(item, f"{prefix}[{place}]")
    else:
        yield prefix, toml.value_text(value)


def times(runs: Sequence[History]) -> Table:
    """Seconds of each phase over a whole run."""
    names = list(dict.fromkeys(name for run in runs for name in run.names() if name.startswith("time/")))
    rows = [
        (name.removeprefix("time/"), *(_duration(sum(value for _, value in run.series(name))) for run in runs))
        for name in names
    ]
    return Table(("phase, in all", *(run.title for run in runs)), rows)


def _numbers(runs: Sequence[History]) -> Table:
    """The plans' numbers; the reasons where they are those of one plan or of all."""
    named = [{n["name"]: n for n in run.plan["numbers"]} for run in runs]
    rows = []
    for name in dict.fromkeys(name for numbers in named for name in numbers):
        found = [numbers.get(name) for numbers in named]
        reasons = {n["reason"] for n in found if n is not None}
        values = ("" if n is None else str(n["value"]) for n in found)
        rows.append((name, *values, reasons.pop() if len(reasons) == 1 else "differs"))
    return Table(("number", *(run.title for run in runs), "because"), rows)


def _versions(runs: Sequence[History]) -> Table:
    every = [{**run.plan["versions"], **run.packages} for run in runs]
    names = list(dict.fromkeys(name for versions in every for name in versions))
    rows = [(name, *(versions.get(name, "") for versions in every)) for name in names]
    return Table(("package", *(run.title for run in runs)), rows)
