"""The curves of a report as figures for papers, PNG and PDF. Imports matplotlib, and no torch."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from flowfactory import shown, write_whole
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowfactory_plugin_report.curves import Panel, Section
from flowfactory_plugin_report.writing import Refused, writing

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b0568c", "#a87b00", "#3f8fbf", "#6a3d9a", "#6b6b6b")
DOTS_PER_INCH = 200
LONG = 24
"""Letters of a name that has a line of its own in the key."""


def draw(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write `<section>.png` and `<section>.pdf` for each section with charts; returns the files.

    What lies there is replaced, link or not. PDFs have their letters as fonts, as publishers want them.

    Raises:
        Refused: the folder cannot be written.
    """
    see(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            return [file for section in sections if section.panels for file in _drawn(section, folder)]


def see(folder: Path) -> None:
    """Raises:
    Refused: a folder for curves is a link, or something else.
    """
    if folder.is_symlink():
        raise Refused(f"{shown(folder)} is a link, through which nothing is written; remove it, or name another --out")
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{shown(folder)} is no folder, and curves are to lie there; remove it, or name another --out")


def _drawn(section: Section, folder: Path) -> list[Path]:
    columns = min(3, len(section.panels))
    rows = math.ceil(len(section.panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel, axis in zip(section.panels, axes, strict=False):
        _panel(panel, axis)
    for axis in axes[len(section.panels) :]:
        axis.set_visible(False)
    _key(section, figure, axes)
    name = re.sub(r"[^a-z0-9]+", "-", section.name.lower())
    made = []
    for form in ("png", "pdf"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=DOTS_PER_INCH)
        figure.set_layout_engine(None)  # which has placed everything, for both
        made.append(folder / f"{name}.{form}")
        write_whole(made[-1], buffer.getvalue())
    return made


def _key(section: Section, figure: Figure, axes: Sequence[Axes]) -> None:
    """Which line is which run, once for all charts, under them."""
    curves = [axis.get_legend_handles_labels() for axis, p in zip(axes, section.panels, strict=False) if not p.stacked]
    found = {label: handle for handles, labels in curves for handle, label in zip(handles, labels, strict=True)}
    if len(found) > 1:
        columns = 1 if max(map(len, found)) > LONG else min(len(found), 4)
        figure.legend([*found.values()], [*found], loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _panel(panel: Panel, axis: Axes) -> None:
    axis.set_title(_plain(panel.title), fontsize=10)
    axis.set_xlabel("epoch", fontsize=9)
    axis.set_ylabel(panel.unit, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e4e7ea", linewidth=0.8)
    axis.set_axisbelow(True)
    below: Sequence[float] | None = None
    for line in panel.lines:
        color, style = COLORS[line.color % len(COLORS)], "--" if line.color >= len(COLORS) else "-"
        x, y = [p.epoch for p in line.points], [p.value for p in line.points]
        if panel.stacked:
            axis.fill_between(
                x, below or [0.0] * len(y), y, color=color, alpha=0.8, linewidth=0, label=_plain(line.label)
            )
            below = y
            continue
        axis.plot(x, y, style, color=color, linewidth=1.6, marker="." if len(x) <= 40 else "", label=_plain(line.label))
        low, high = zip(*line.band(), strict=True) if line.points else ((), ())
        if low != high:
            axis.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)
    if panel.stacked:
        axis.legend(fontsize=7, frameon=False)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
