"""Which curves a report shows: metrics of one or more runs, sorted into sections of charts. Imports no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs
from flowfactory import History

GIB = 1 << 30
SCORE = "eval/score"

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
    """One metric of one run.

    color: a number from 0, the same for a run in every chart. bounds: what its values are known to lie between.
    """

    label: str
    color: int
    points: tuple[Point, ...]
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def band(self) -> list[tuple[float, float]]:
        """One standard deviation to either side of each point, within the bounds; the point where there is none."""
        low, high = self.bounds
        ends = []
        for value, spread in ((p.value, p.spread if math.isfinite(p.spread) else 0.0) for p in self.points):
            known = math.isfinite(value)
            ends.append((max(low, value - spread), min(high, value + spread)) if known else (math.nan, math.nan))
        return ends


@attrs.frozen
class Panel:
    """One chart. stacked: the lines are parts of a whole, drawn on top of each other. unit: of its values, in words."""

    title: str
    lines: tuple[Line, ...]
    stacked: bool = False
    unit: str = ""


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
    left = [metric for metric in left if not is_said_by_its_only_reward(runs, metric)]
    left.sort(key=lambda metric: not metric.endswith("/score"))
    watched = set.intersection(*({*_watched(run)} for run in runs))
    made = []
    for name, about, takes in SECTIONS:
        taken = _grouped([metric for metric in left if takes(metric)])
        left = [metric for metric in left if metric not in taken]
        shown = [metric for metric in taken if not metric.endswith("/std")]
        quiet = [metric for metric in shown if name in MAY_BE_QUIET and _is_zero(runs, metric)]
        panels = tuple(panel for metric in shown if metric not in quiet for panel in _panels(runs, metric, watched))
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
LEADING = (REWARD, HELD_OUT)
"""The sections that are shown at once, and large."""

SECTIONS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    (
        REWARD,
        "Mean over the samples of each epoch; the band is one standard deviation of them to either side. The score is "
        "the sum of the means, each times its weight: the total that is optimised.",
        _mean_of("reward"),
    ),
    (
        HELD_OUT,
        "Fixed prompts and noise, deterministic sampling, averaged weights; bands as above. A star marks the "
        "best epoch.",
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
        "GiB at the peak of each phase, on the main process: of tensors on the GPU; without one, of what is resident "
        "beyond what there was before the model was loaded.",
        _under("memory"),
    ),
    (
        "Network",
        "Calls of the trained networks, with a gradient and without, and the seconds in them, on the main process.",
        _under("network"),
    ),
    ("More", "What plugins measured under names of their own.", lambda metric: True),
)
MAY_BE_QUIET = ("Groups and samples", "Loss and updates")


def _is_zero(runs: Sequence[History], metric: str) -> bool:
    return all(value == 0 for run in runs for _, value in run.series(metric))


def is_said_by_its_only_reward(runs: Sequence[History], metric: str) -> bool:
    """Whether a total is the mean of one reward, in every run, so that its chart would be there twice."""
    group, _, name = metric.rpartition("/")
    means = {
        other for run in runs for other in run.names() if other.startswith(f"{group}/") and other.endswith("/mean")
    }
    return name == "score" and any(all(run.series(metric) == run.series(mean) for run in runs) for mean in means)


def _watched(run: History) -> Iterator[str]:
    """The rewards that count for nothing, as the metrics name them."""
    spec = run.plan["spec"]
    tables = {"reward": spec.get("reward", []), "eval": _evaluated(spec)}
    for prefix, entries in tables.items():
        yield from (f"{prefix}/{e.get('label', e['name'])}" for e in entries if e.get("weight", 1.0) == 0)


def _panels(runs: Sequence[History], metric: str, watched: Collection[str]) -> Iterator[Panel]:
    """The chart of a metric; of a loss one for each algorithm, since those of two cannot be compared."""
    title = metric.removesuffix("/mean")
    title += " (watched only)" if title in watched else ""
    trainers = list(dict.fromkeys(_trainer(run) for run in runs if metric in run.names()))
    apart = trainers if metric.startswith("loss/") and len(trainers) > 1 else [""]
    for trainer in apart:
        own = [(color, run) for color, run in enumerate(runs) if trainer in ("", _trainer(run))]
        lines = [line for color, run in own if (line := _line(color, run, metric)).points]
        gib = metric.startswith("memory/")
        yield Panel(f"{title} ({trainer})" if trainer else title, tuple(lines), unit="GiB" if gib else "")


def _trainer(run: History) -> str:
    return str(run.plan["spec"]["trainer"]["name"])


def _line(color: int, run: History, metric: str) -> Line:
    spread = dict(run.series(f"{metric.removesuffix('/mean')}/std")) if metric.endswith("/mean") else {}
    scale = 1 / GIB if metric.startswith("memory/") else 1.0
    points = [Point(epoch, value * scale, spread.get(epoch, math.nan)) for epoch, value in run.series(metric)]
    return Line(run.title, color, thinned(points), (0.0, 1.0) if _zero_or_one(points) else (-math.inf, math.inf))


def _zero_or_one(points: Sequence[Point]) -> bool:
    """Whether these are means of zeros and ones: then, and only then, is the variance of each m (1 - m)."""
    known = [(p.value, p.spread) for p in points if math.isfinite(p.value) and math.isfinite(p.spread)]
    alike = (math.isclose(spread**2, mean * (1 - mean), rel_tol=1e-4, abs_tol=1e-6) for mean, spread in known)
    return any(spread > 0 for _, spread in known) and all(alike)


def best_epoch(run: History) -> tuple[int, float] | None:
    """The epoch of the best evaluation after training began, as `[checkpoint] best` judges, and what it is judged by.

    The earliest of equal ones; None where nothing is held out.
    """
    spec = run.plan["spec"]
    wanted = spec.get("checkpoint", {}).get("best") or SCORE
    held_out = [name for name in run.names() if name.startswith("eval/") and name.endswith("/mean")]
    name = wanted if run.series(wanted) else held_out[0] if len(held_out) == 1 else SCORE
    weights = {f"eval/{e.get('label', e['name'])}/mean": e.get("weight", 1.0) for e in _evaluated(spec)}
    sign = math.copysign(1.0, weights.get(name, 1.0))
    found = [(epoch, value) for epoch, value in run.series(name) if epoch > 0 and math.isfinite(value)]
    return max(found, key=lambda point: (sign * point[1], -point[0]), default=None)


def _evaluated(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = spec.get("eval", {}).get("reward") or spec.get("reward", [])
    return found


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
