"""The curves of the page about tuning, from real runs on `shapes`: `python docs/tools/tuning.py docs/images`.

Each run takes some two minutes of one core; those that lie in `runs/tuning` already are drawn as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs" / "tuning"
SPEC = "flowfactory_plugin_shapes:examples/shapes-grpo.toml"
SHORT = ("run.epochs=16", "eval.every=8", "run.save_samples=6")
HACKABLE = 'reward=[{name="jpeg-compressibility"}]'
CHANGES: Mapping[str, Sequence[str]] = {
    "good": (),
    "hacked": (HACKABLE,),
    "fast": ("optimizer.lr=1e-2",),
    "slow": ("optimizer.lr=2e-6",),
    "held": (HACKABLE, "trainer.kl_beta=1.0"),
    "pairs": ("sampling.group=2", "sampling.prompts=72"),
    "both": ('reward=[{name="jpeg-compressibility"}, {name="shapes"}]',),
}
"""What each run changes in the example."""

GREY = "#808488"
"""Read on white and on black."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tuning",
    "font.size": 9,
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
}
COLOURS = ("#2a8fd0", "#e08214", "#3aa76d")


@attrs.frozen
class Figure:
    """A picture: the lines are runs, by what they are called there; the panels are metrics, by their titles."""

    lines: Mapping[str, str]
    panels: Mapping[str, str]


FIGURES: Mapping[str, Figure] = {
    "tuning-flat": Figure(
        {"good": "lr = 2e-4, groups of 12", "slow": "lr = 2e-6", "pairs": "groups of 2"},
        {"reward/score": "training reward", "eval/shapes/mean": "held-out shapes"},
    ),
    "tuning-collapse": Figure(
        {"good": "lr = 2e-4", "fast": "lr = 1e-2"},
        {"reward/score": "training reward", "train/clip_fraction": "train/clip_fraction"},
    ),
    "tuning-hacked": Figure(
        {"hacked": "jpeg-compressibility", "held": "the same, kl_beta = 1", "both": "jpeg-compressibility and shapes"},
        {"reward/jpeg-compressibility/mean": "jpeg-compressibility", "eval/shapes/mean": "held-out shapes"},
    ),
}


def metrics(name: str) -> list[dict[str, float]]:
    """The epochs of a run, made if it is not there."""
    folder = RUNS / name
    if not (folder / "metrics.jsonl").exists():
        options = [f"--set={change}" for change in (*SHORT, *CHANGES[name])]
        command = [sys.executable, "-m", "flowfactory", "run", SPEC, "--folder", str(folder), *options]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def draw(figure: Figure, file: Path) -> None:
    """One panel for each metric."""
    drawn, panels = plt.subplots(1, len(figure.panels), figsize=(7, 2.6), layout="constrained")
    for (run, label), colour in zip(figure.lines.items(), COLOURS, strict=False):
        for panel, metric in zip(panels, figure.panels, strict=True):
            points = [(line["epoch"], line[metric]) for line in metrics(run) if line.get(metric) is not None]
            panel.plot(*zip(*points, strict=True), label=label, color=colour, marker="." if len(points) < 9 else "")
    for panel, title in zip(panels, figure.panels.values(), strict=True):
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(color=GREY, alpha=0.25)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    drawn.savefig(file, metadata={"Date": None})
    plt.close(drawn)


if __name__ == "__main__":
    for name in CHANGES:
        metrics(name)
    with plt.rc_context(STYLE):
        for name, figure in FIGURES.items():
            draw(figure, Path(sys.argv[1]) / f"{name}.svg")
