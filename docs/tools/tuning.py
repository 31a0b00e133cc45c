"""The curves of the page about tuning: `python docs/tools/tuning.py docs/images/tuning.svg`. Four runs of minutes each.

Runs that lie in `runs/tuning` already are drawn as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs" / "tuning"
SPEC = ROOT / "plugins" / "shapes" / "examples" / "shapes-grpo.toml"
COMPRESSED = '[{name = "jpeg-compressibility"}, {name = "shapes", weight = 0}]'
CASES: Mapping[str, Sequence[str]] = {
    "as it should be": (),
    "flat: lr = 2e-6": ("optimizer.lr=2e-6",),
    "collapses: lr = 2e-2": ("optimizer.lr=2e-2",),
    "hacked: jpeg-compressibility": (f"reward={COMPRESSED}",),
}
PANELS = {
    "reward/score": "reward trained on",
    "eval/shapes/mean": "held-out shapes",
    "samples/diversity": "how much samples of a group differ",
}


def trained(name: str, changes: Sequence[str]) -> list[dict[str, float]]:
    """The metrics of a run of thirty epochs, made if it is not there."""
    folder = RUNS / name.partition(":")[0].replace(" ", "-")
    if not (folder / "metrics.jsonl").exists():
        options = ["run.epochs=30", "eval.every=5", *changes]
        command = [sys.executable, "-m", "flowfactory", "run", str(SPEC), "--folder", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *(f"--set={one}" for one in options)], check=True, env=environment)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def draw(file: Path) -> None:
    """One panel for each metric, one line for each run."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.2), layout="constrained")
    for name, changes in CASES.items():
        lines = trained(name, changes)
        for axis, metric in zip(axes, PANELS, strict=True):
            points = [(line["epoch"], line[metric]) for line in lines if metric in line]
            axis.plot(*zip(*points, strict=True), label=name)
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        axis.set(title=title, xlabel=f"epoch; `{metric}`".replace("`", ""))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(CASES), frameon=False)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
