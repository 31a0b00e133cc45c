"""Which curves a report shows: metrics of one or more runs, sorted into sections of charts. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence

import attrs

from flowfactory.runs.history import History

MOST_POINTS = 400
"""A line with more points is drawn as the means of that many equal stretches."""


@attrs.frozen
class Point:
    """A value at an epoch; `spread` is a standard deviation, NaN where there is none."""

    epoch: float
    value: float
    spread: float = math.nan


@attrs.frozen
class Line:
    """One metric of one run. color: a number from 0, the same for a run in every chart."""

    label: str
    color: int
    points: tuple[Point, ...]


@attrs.frozen
class Panel:
    """One chart. stacked: the lines are parts of a whole, drawn on top of each other."""

    title: str
    lines: tuple[Line, ...]
    stacked: bool = False


@attrs.frozen
class Section:
    """Charts that belong together. quiet: metrics that were 0 throughout, which no chart is spent on."""

    name: str
    about: str
    panels: tuple[Panel, ...]
    quiet: tuple[str, ...] = ()


def sections(runs: Sequence[History]) -> list[Section]:
    """Every metric of the runs, each in the first section that takes it; sections without any are left out."""
    left = list(dict.fromkeys(name for run in runs for name in run.names()))
    watched = set.intersection(*({*_watched(run)} for run in runs))
    made = []
    for name, about, takes in SECTIONS:
        taken = _grouped([metric for metric in left if takes(metric)])
        left = [metric for metric in left if metric not in taken]
        shown = [metric for metric in taken if not metric.endswith("/std")]
        quiet = [metric for metric in shown if name in MAY_BE_QUIET and _is_zero(runs, metric)]
        panels = tuple(_panel(runs, metric, watched) for metric in shown if metric not in quiet)
        if name == TIME:
            panels = tuple(_stack(color, run, taken) for color, run in enumerate(runs) if len(run.metrics) > 1)
        if panels or quiet:
            made.append(Section(name, about, panels, tuple(quiet)))
    return made


def _grouped(metrics: Sequence[str]) -> list[str]:
    """Metrics with the same first word next to each other, otherwise in their order."""
    words = [metric.partition("/")[0] for metric in metrics]
    return sorted(metrics, key=lambda metric: words.index(metric.partition("/")[0]))


def _mean_of(group: str) -> Callable[[str], bool]:
    ends = ("/mean", "/std")
    return lambda metric: metric == f"{group}/score" or (metric.startswith(f"{group}/") and metric.endswith(ends))


def _under(*groups: str) -> Callable[[str], bool]:
    return lambda metric: metric.partition("/")[0] in groups


REWARD, HELD_OUT, TIME = "Reward", "Held-out evaluation", "Time"
SECTIONS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    (
        REWARD,
        "Mean over the samples of each epoch; the band is one standard deviation of them to either side. The score is "
        "the sum of the means, each times its weight.",
        _mean_of("reward"),
    ),
    (
        HELD_OUT,
        "Fixed prompts and noise, deterministic sampling, averaged weights; bands as above.",
        _mean_of("eval"),
    ),
    (
        "Loss and updates",
        "Each named part of the loss, and what the optimizer steps did: probability ratios, clipping, divergence, "
        "gradients, learning rate. Means over an epoch.",
        _under("loss", "train", "lr"),
    ),
    ("Groups and samples", "Signs that a reward has no more to teach, or failed.", _under("reward", "eval", "samples")),
    ("Sources of the data", "Means over the samples of one source, and how many groups were of it.", _under("source")),
    (
        TIME,
        "Seconds of each phase, on the main process. Loading, before the first epoch, is in the table.",
        _under("time"),
    ),
    (
        "Memory",
        "Bytes at the peak of each phase, on the main process: of tensors on the GPU; without one, of what is resident "
        "beyond what there was before the model was loaded.",
        _under("memory"),
    ),
    ("More", "Whatever else was measured.", lambda metric: True),
)
MAY_BE_QUIET = ("Groups and samples", "Loss and updates")


def _is_zero(runs: Sequence[History], metric: str) -> bool:
    return all(value == 0 for run in runs for _, value in run.series(metric))


def _watched(run: History) -> Iterator[str]:
    """The rewards that count for nothing, as the metrics name them."""
    spec = run.plan["spec"]
    tables = {"reward": spec.get("reward", []), "eval": spec.get("eval", {}).get("reward") or spec.get("reward", [])}
    for prefix, entries in tables.items():
        yield from (f"{prefix}/{e.get('label', e['name'])}" for e in entries if e.get("weight", 1.0) == 0)


def _panel(runs: Sequence[History], metric: str, watched: Collection[str]) -> Panel:
    lines = []
    for color, run in enumerate(runs):
        spread = dict(run.series(f"{metric.removesuffix('/mean')}/std")) if metric.endswith("/mean") else {}
        points = [Point(epoch, value, spread.get(epoch, math.nan)) for epoch, value in run.series(metric)]
        if points:
            lines.append(Line(run.title, color, thinned(points)))
    title = metric.removesuffix("/mean")
    return Panel(f"{title} (watched only)" if title in watched else title, tuple(lines))


def _stack(color: int, run: History, metrics: Sequence[str]) -> Panel:
    """Seconds per phase from the first epoch on, each line on top of the one before, the longest phase first."""
    epochs = [epoch for epoch in run.metrics if epoch > 0]
    spent = {name: sum(run.metrics[epoch].get(name, 0.0) for epoch in epochs) for name in metrics}
    names = sorted((name for name in metrics if spent[name] > 0), key=lambda name: -spent[name])
    totals, lines = dict.fromkeys(epochs, 0.0), []
    for number, name in enumerate(names):
        for epoch in epochs:
            totals[epoch] += run.metrics[epoch].get(name, 0.0)
        points = [Point(epoch, total) for epoch, total in totals.items()]
        lines.append(Line(name.removeprefix("time/"), number, thinned(points)))
    return Panel(f"seconds per epoch: {run.title}", tuple(lines), stacked=True)


def thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most `MOST_POINTS` points: means of neighbours where there are more."""
    if len(points) <= MOST_POINTS:
        return tuple(points)
    edges = [i * len(points) // MOST_POINTS for i in range(MOST_POINTS + 1)]
    return tuple(_mean(points[start:end]) for start, end in itertools.pairwise(edges))


def _mean(points: Sequence[Point]) -> Point:
    columns = zip(*((point.epoch, point.value, point.spread) for point in points), strict=True)
    return Point(*(math.fsum(column) / len(points) for column in columns))
