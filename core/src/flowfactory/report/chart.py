"""The geometry of a chart: curves as SVG paths in a fixed frame, with round numbers at the axes."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence

import attrs

from flowfactory.report.curves import Line, Panel, Point

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 350, 10, 192
MOST_DOTS = 40
"""A curve with more points is a bare line."""


@attrs.frozen
class Tick:
    """A round number and where it lies."""

    at: float
    text: str


@attrs.frozen
class Curve:
    """One line as SVG paths. data: JSON of `[x, y, epoch, value]`, for whoever points at it."""

    label: str
    color: int
    path: str
    area: str
    dots: tuple[tuple[float, float], ...]
    data: str


@attrs.frozen
class Chart:
    """A panel, ready to be drawn."""

    title: str
    stacked: bool
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@attrs.frozen
class _Frame:
    """Where numbers lie in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, epoch: float, value: float) -> tuple[float, float]:
        return (
            round(LEFT + (epoch - self.x[0]) / (self.x[1] - self.x[0]) * (RIGHT - LEFT), 1),
            round(BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (BOTTOM - TOP), 1),
        )


def chart(panel: Panel) -> Chart:
    """Lay a panel out; values that are not finite leave gaps."""
    points = [point for line in panel.lines for point in line.points if math.isfinite(point.value)]
    reach = [point.value + sign * _known(point.spread) for point in points for sign in (-1, 1)]
    epochs = [point.epoch for point in points]
    frame = _Frame(_range(epochs, 0.0), _range([*reach, 0.0] if panel.stacked else reach, 0.04))
    lower: Sequence[Point] | None = None
    curves = []
    for line in panel.lines:
        curves.append(_curve(line, frame, lower, panel.stacked))
        lower = line.points
    x_ticks = tuple(Tick(frame.place(value, 0)[0], text) for value, text in _round_numbers(*frame.x, 6, whole=True))
    y_ticks = tuple(Tick(frame.place(0, value)[1], text) for value, text in _round_numbers(*frame.y, 5))
    return Chart(panel.title, panel.stacked, tuple(curves), x_ticks, y_ticks)


def _curve(line: Line, frame: _Frame, lower: Sequence[Point] | None, stacked: bool) -> Curve:
    stretches = list(_stretches(line.points))
    spots = [frame.place(point.epoch, point.value) for stretch in stretches for point in stretch]
    path = " ".join(_path([frame.place(p.epoch, p.value) for p in stretch]) for stretch in stretches)
    if stacked:
        under = [Point(p.epoch, 0.0) for p in line.points] if lower is None else lower
        area = _outline([(p.epoch, p.value) for p in line.points], [(p.epoch, p.value) for p in under], frame)
        below = [p.value for p in under]
    else:
        area, below = " ".join(_band(stretch, frame) for stretch in stretches), [0.0] * len(line.points)
    own = [(p, p.value - b) for p, b in zip(line.points, below, strict=True) if math.isfinite(p.value)]
    data = [[*spot, point.epoch, value] for spot, (point, value) in zip(spots, own, strict=True)]
    few = tuple(spots) if len(spots) <= MOST_DOTS and not stacked else ()
    return Curve(line.label, line.color, path, area.strip(), few, json.dumps(data))


def _stretches(points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    for finite, stretch in itertools.groupby(points, lambda point: math.isfinite(point.value)):
        if finite:
            yield list(stretch)


def _path(spots: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in spots)


def _band(stretch: Sequence[Point], frame: _Frame) -> str:
    if all(_known(point.spread) == 0 for point in stretch):
        return ""
    upper, lower = ([(p.epoch, p.value + sign * _known(p.spread)) for p in stretch] for sign in (1, -1))
    return _outline(upper, lower, frame)


def _outline(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], frame: _Frame) -> str:
    return _path([frame.place(*spot) for spot in [*upper, *reversed(lower)]]) + "Z"


def _known(spread: float) -> float:
    return spread if math.isfinite(spread) else 0.0


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The range of values, never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = abs(high) / 2 or 0.5
        return low - around, high + around
    return low - margin * (high - low), high + margin * (high - low)


def _round_numbers(low: float, high: float, most: int, whole: bool = False) -> list[tuple[float, str]]:
    """Multiples of a round step in a range, and how they are written."""
    step = _step(high - low, most, whole)
    multiples = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    decimals = max(0, -math.floor(math.log10(step)))
    extreme, few_digits = not 1e-4 <= step < 1e6, max(abs(low), abs(high)) < 1000 * step
    return [(value, number(value) if extreme and few_digits else f"{value:.{decimals}f}") for value in multiples]


def _step(span: float, most: int, whole: bool) -> float:
    """The least 1, 2 or 5 times a power of ten of which `most` cover a span."""
    power = math.floor(math.log10(span / most))
    steps = (factor * 10.0**exponent for exponent in itertools.count(power) for factor in (1, 2, 5))
    return next(step for step in steps if step * most >= span and (step >= 1 or not whole))


def number(value: float) -> str:
    """A few digits: 0.512, 12, 3.1e-5."""
    if not 1e-3 <= abs(value) < 1e6 and value != 0 and math.isfinite(value):
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if value.is_integer():
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
