"""Which charts there are, and where their lines run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from flowfactory import read_runs
from flowfactory_plugin_report.curves import MOST_POINTS, Line, Panel, Point, Section, best_epoch, sections, thinned
from flowfactory_plugin_report.numbers import number
from flowfactory_plugin_report.page import chart
from flowfactory_plugin_report.plots import draw
from flowfactory_plugin_report.tables import facts
from PIL import Image
from runs import lay_run
from specs import SPEC


def shown(tmp_path: Path, **metrics: float) -> dict[str, Section]:
    runs = [lay_run(tmp_path / name, metrics={k.replace("__", "/"): v for k, v in metrics.items()}) for name in "ab"]
    return {section.name: section for section in sections(read_runs(runs))}


def test_every_metric_has_its_place(tmp_path: Path) -> None:
    found = shown(tmp_path, memory__peak=1e9, network__forward=64.0, odd__thing=2.0)
    assert [panel.title for panel in found["Reward"].panels] == ["reward/bright"]
    assert [panel.title for panel in found["Loss and updates"].panels] == ["loss/policy", "train/ratio", "lr"]
    assert found["Groups and samples"].quiet == ("reward/zero_std_groups",)
    assert [panel.title for panel in found["Memory"].panels] == ["memory/peak"]
    assert [panel.title for panel in found["Network"].panels] == ["network/forward"]
    assert [panel.title for panel in found["More"].panels] == ["odd/thing"]
    assert [panel.stacked for panel in found["Time"].panels] == [True, True]


def test_what_was_optimised_and_what_was_only_watched(tmp_path: Path) -> None:
    spec = SPEC.replace("weight = -0.5", "weight = 0")
    assert spec != SPEC
    own = {"reward/dark/mean": 0.5, "reward/score": 0.75, "eval/dark/mean": 0.5, "eval/score": 0.75}
    run = lay_run(tmp_path / "run", metrics=own, spec=spec)
    found = {section.name: [panel.title for panel in section.panels] for section in sections(read_runs([run]))}
    assert found["Reward"] == ["reward/score", "reward/bright", "reward/dark (watched only)"]
    assert found["Held-out evaluation"] == ["eval/score", "eval/bright", "eval/dark (watched only)"]
    told = dict(facts(read_runs([run])[0]))
    assert told["rewards"] == "bright (weight 1), dark (watched only)"
    assert told["held-out score"] == "0.750 (epoch 1) → 0.750"


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


def test_a_chart_has_the_runs_numbers() -> None:
    made = chart(Panel("x", (Line("a", 0, (Point(0, 0.25, 0.125), Point(10, 1 / 3))),), unit="GiB"))
    assert made == {
        "title": "x",
        "unit": "GiB",
        "stacked": False,
        "lines": [
            {"label": "a", "color": 0, "x": [0, 10], "y": [0.25, 0.333333], "band": [[0.125, 0.375], [0.333333] * 2]}
        ],
    }


def test_parts_of_a_stack_are_told_each_by_itself() -> None:
    lower, upper = (Line(name, 0, (Point(1, value), Point(2, 2 * value))) for name, value in (("a", 1.0), ("b", 3.0)))
    assert [line["y"] for line in chart(Panel("x", (lower, upper), stacked=True))["lines"]] == [[1, 2], [2, 4]]


def test_what_is_not_finite_leaves_a_gap() -> None:
    points = (Point(0, 0.0), Point(1, 1.0, 0.5), Point(2, math.nan, 0.5), Point(3, math.inf), Point(4, 1.0, math.nan))
    (line,) = chart(Panel("x", (Line("a", 0, points),)))["lines"]
    assert line["y"] == [0, 1, None, None, 1]
    assert line["band"] == [[0, 0], [0.5, 1.5], [None, None], [None, None], [1, 1]]
    assert json.loads(json.dumps(line, allow_nan=False)) == line


@pytest.mark.parametrize(
    ("mean", "spread", "band"),
    [(0.1, math.sqrt(0.09), (0.0, 0.4)), (0.9, math.sqrt(0.09), (0.6, 1.0)), (0.1, 0.2, (-0.1, 0.3))],
)
def test_the_band_of_zeros_and_ones_ends_at_them(
    tmp_path: Path, mean: float, spread: float, band: tuple[float, float]
) -> None:
    """And of no other reward, of which nobody knows where it ends."""
    run = lay_run(tmp_path / "run", metrics={"reward/hit/mean": mean, "reward/hit/std": spread})
    (panel,) = [p for p in sections(read_runs([run]))[0].panels if p.title == "reward/hit"]
    assert panel.lines[0].band()[0] == pytest.approx(band)


def test_a_total_that_is_one_reward_has_no_chart_of_its_own(tmp_path: Path) -> None:
    same, other = {"reward/a/mean": 0.5, "reward/score": 0.5}, {"reward/a/mean": 0.5, "reward/score": 0.25}
    for place, (metrics, charts) in enumerate(((same, ["a", "bright"]), (other, ["score", "a", "bright"]))):
        metrics |= {name.replace("reward", "eval"): value for name, value in metrics.items()}
        (run,) = read_runs([lay_run(tmp_path / str(place), metrics=metrics)])
        (section, *_) = sections([run])
        assert ("held-out score" in dict(facts(run))) == ("score" in charts)
        assert sorted(panel.title for panel in section.panels) == sorted(f"reward/{chart}" for chart in charts)


def test_memory_is_in_gib_whatever_the_metrics_count_in(tmp_path: Path) -> None:
    (panel,) = shown(tmp_path, memory__sample=3 * 2**29)["Memory"].panels
    assert (panel.unit, panel.lines[0].points[0].value) == ("GiB", 1.5)


def test_losses_of_two_algorithms_have_charts_of_their_own(tmp_path: Path) -> None:
    one, two = lay_run(tmp_path / "one"), lay_run(tmp_path / "two")
    plan = json.loads((two / "plan.json").read_text())
    plan["spec"]["trainer"]["name"] = "other"
    (two / "plan.json").write_text(json.dumps(plan))
    found = {section.name: section for section in sections(read_runs([one, two]))}["Loss and updates"]
    assert [(p.title, [line.label for line in p.lines]) for p in found.panels] == [
        ("loss/policy (toy)", ["one"]),
        ("loss/policy (other)", ["two"]),
        ("train/ratio", ["one", "two"]),
        ("lr", ["one", "two"]),
    ]


@pytest.mark.parametrize(
    ("best", "series", "found"),
    [
        ("score", {"eval/score": [9, 1, 3, 3, 2]}, (2, 3)),
        ("score", {"eval/only/mean": [0, 1, 2]}, (2, 2)),
        ("score", {"eval/one/mean": [0, 1, 2], "eval/two/mean": [0, 1, 2]}, None),
        ("eval/dark/mean", {"eval/score": [0, 1, 2], "eval/dark/mean": [5, 4, 3]}, (2, 3)),
        ("score", {"eval/score": [1, math.nan, math.nan]}, None),
    ],
)
def test_the_best_epoch_is_the_one_whose_checkpoint_is_best(
    tmp_path: Path, best: str, series: dict[str, list[float]], found: tuple[int, float] | None
) -> None:
    """Not the start; the earliest of equal ones; the least of a reward that is to fall."""
    run = lay_run(tmp_path / "run")
    plan = json.loads((run / "plan.json").read_text())
    plan["spec"].setdefault("checkpoint", {})["best"] = best
    (run / "plan.json").write_text(json.dumps(plan))
    lines = [
        {"epoch": epoch, **dict(zip(series, values, strict=True))}
        for epoch, values in enumerate(zip(*series.values(), strict=True))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line).replace("NaN", "null") + "\n" for line in lines))
    assert best_epoch(read_runs([run])[0]) == found


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (0.51234, "0.512"), (31.25, "31.2"), (1234.5, "1234"), (3.1e-5, "3.1e-5"), (-2e8, "-2e8"),
     (math.nan, "nan")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_curves_are_drawn_as_figures(tmp_path: Path) -> None:
    found = shown(tmp_path, **{"loss__$x^{": 1.0, "memory__sample": 1e9})
    files = draw(list(found.values()), tmp_path / "curves")
    sections = ["reward", "held-out-evaluation", "loss-and-updates", "time", "memory"]
    assert [file.name for file in files] == [f"{name}.{form}" for name in sections for form in ("png", "pdf")]
    for file in files:
        if file.suffix == ".pdf":
            content = file.read_bytes()
            assert content.startswith(b"%PDF")
            assert b"/FontFile2" in content  # letters, not outlines of them
            continue
        with Image.open(file) as picture:
            assert picture.width >= 800
            assert len(picture.convert("RGB").resize((200, 150)).getcolors(1 << 16) or ()) > 20
