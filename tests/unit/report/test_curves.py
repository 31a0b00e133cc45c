"""Which charts there are, and where their lines run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from flowfactory.report.chart import BOTTOM, LEFT, RIGHT, TOP, chart, number
from flowfactory.report.curves import MOST_POINTS, Line, Panel, Point, Section, sections, thinned
from flowfactory.report.plots import draw
from flowfactory.report.report import facts
from flowfactory.runs import history
from PIL import Image
from runs import lay_run
from specs import SPEC


def shown(tmp_path: Path, **metrics: float) -> dict[str, Section]:
    runs = [lay_run(tmp_path / name, metrics={k.replace("__", "/"): v for k, v in metrics.items()}) for name in "ab"]
    return {section.name: section for section in sections(history.read(runs))}


def test_every_metric_has_its_place(tmp_path: Path) -> None:
    found = shown(tmp_path, memory__peak=1e9, odd__thing=2.0)
    assert [panel.title for panel in found["Reward"].panels] == ["reward/bright"]
    assert [panel.title for panel in found["Loss and updates"].panels] == ["loss/policy", "train/ratio", "lr"]
    assert found["Groups and samples"].quiet == ("reward/zero_std_groups",)
    assert [panel.title for panel in found["Memory"].panels] == ["memory/peak"]
    assert [panel.title for panel in found["More"].panels] == ["odd/thing"]
    assert [panel.stacked for panel in found["Time"].panels] == [True, True]


def test_what_was_optimised_and_what_was_only_watched(tmp_path: Path) -> None:
    spec = SPEC.replace("weight = -0.5", "weight = 0")
    assert spec != SPEC
    own = {"reward/dark/mean": 0.5, "reward/score": 0.75, "eval/dark/mean": 0.5, "eval/score": 0.75}
    run = lay_run(tmp_path / "run", metrics=own, spec=spec)
    found = {section.name: [panel.title for panel in section.panels] for section in sections(history.read([run]))}
    assert found["Reward"] == ["reward/bright", "reward/dark (watched only)", "reward/score"]
    assert found["Held-out evaluation"] == ["eval/bright", "eval/dark (watched only)", "eval/score"]
    told = dict(facts(history.read([run])[0]))
    assert told["rewards"] == "bright (weight 1), dark (watched only)"
    assert told["held-out score"] == "0.750 (epoch 1) → 0.750 (epoch 6)"


def test_runs_share_charts_and_keep_their_colours(tmp_path: Path) -> None:
    (panel,) = shown(tmp_path)["Reward"].panels
    assert [(line.label, line.color) for line in panel.lines] == [("a", 0), ("b", 1)]
    assert panel.lines[0].points[0] == Point(1, pytest.approx(0.425 + 0.03 * math.sin(1)), 0.15)


def test_phases_are_stacked(tmp_path: Path) -> None:
    sample, update, evaluate = shown(tmp_path)["Time"].panels[0].lines
    assert (sample.label, update.label, evaluate.label) == ("sample", "update", "evaluate")
    assert [p.value for p in evaluate.points] == pytest.approx([3.1, 3.7, 3.3, 3.9, 3.5, 4.1])


def test_long_lines_become_means() -> None:
    points = thinned([Point(i, 2.0 * i, 1.0) for i in range(4 * MOST_POINTS)])
    assert len(points) == MOST_POINTS
    assert points[0] == Point(1.5, 3.0, 1.0)


def test_points_lie_where_their_numbers_say() -> None:
    made = chart(Panel("x", (Line("a", 0, (Point(0, 0.0), Point(10, 1.0))),)))
    (x0, y0, *first), (x1, y1, *last) = json.loads(made.curves[0].data)
    assert (x0, x1, first, last) == (LEFT, RIGHT, [0, 0.0], [10, 1.0])
    margin = 0.04 / 1.08 * (BOTTOM - TOP)
    assert (y0, y1) == (pytest.approx(BOTTOM - margin, abs=0.1), pytest.approx(TOP + margin, abs=0.1))
    assert [tick.text for tick in made.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert [tick.text for tick in made.y_ticks] == ["0.0", "0.5", "1.0"]
    half = next(tick for tick in made.y_ticks if tick.text == "0.5")
    assert half.at == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_what_is_not_finite_leaves_a_gap() -> None:
    points = (Point(0, 0.0), Point(1, 1.0), Point(2, math.nan), Point(3, math.inf), Point(4, 1.0))
    curve = chart(Panel("x", (Line("a", 0, points),))).curves[0]
    assert curve.path.count("M") == 2
    assert len(json.loads(curve.data)) == 3


@pytest.mark.parametrize("values", [(), (0.0,), (3.0, 3.0), (-1e-7, 2e-7), (1e9, 2e9), (0.99999, 1.00001)])
def test_any_range_has_distinct_ticks(values: tuple[float, ...]) -> None:
    made = chart(Panel("x", (Line("a", 0, tuple(Point(i + 1, v) for i, v in enumerate(values))),)))
    texts = [tick.text for tick in made.y_ticks]
    assert 2 <= len(texts) == len(set(texts)) <= 7
    assert all(TOP - 1 <= tick.at <= BOTTOM + 1 for tick in made.y_ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (0.51234, "0.512"), (31.25, "31.2"), (1234.5, "1234"), (3.1e-5, "3.1e-5"), (-2e8, "-2e8"),
     (math.nan, "nan")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_curves_are_drawn_as_png(tmp_path: Path) -> None:
    found = shown(tmp_path, **{"loss__$x^{": 1.0})
    files = draw(list(found.values()), tmp_path / "curves")
    assert [file.name for file in files] == [
        "reward.png",
        "held-out-evaluation.png",
        "loss-and-updates.png",
        "time.png",
    ]
    for file in files:
        with Image.open(file) as picture:
            assert picture.width >= 800
            assert len(picture.convert("RGB").resize((200, 150)).getcolors(1 << 16) or ()) > 20
