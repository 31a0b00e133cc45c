"""Train every algorithm from the same base, on the same prompts, with the same budget of transformer calls.

    python plugins/shapes/reproduce/reproduce.py --to docs/results

A call is one sample that passes the transformer once, forward only or with a backward pass. What is written: curves of
the held-out reward against calls and against minutes, a before/after sheet per algorithm, and a table. Runs that are
already finished are not made again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copyfile

import attrs
import click
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
ALGORITHMS = ("grpo", "grpo-guard", "flow-grpo-fast", "nft", "awm")
REWARD, CORRECT = "eval/shapes/mean", "eval/shapes-correct/mean"


@attrs.frozen
class Point:
    """An evaluation: what had been spent by then, and the held-out rewards."""

    calls: float
    minutes: float
    reward: float
    correct: float


@attrs.frozen
class Curve:
    """The evaluations of one run, the one before training first."""

    algorithm: str
    seed: int
    points: Sequence[Point]


@click.command(help=__doc__)
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Where the page and its pictures go.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs/reproduce", show_default=True)
@click.option("--budget", default=60_000, show_default=True, help="Transformer calls of each run, about.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", default=os.cpu_count(), show_default="one per core", help="Runs at a time, one thread each.")
def main(to: Path, runs: Path, budget: int, seeds: int, jobs: int) -> None:
    """Make what runs are missing, then the page."""
    with ThreadPoolExecutor(jobs) as pool:
        epochs = dict(zip(ALGORITHMS, pool.map(lambda a: budget // calls_per_epoch(a), ALGORITHMS), strict=True))
        wanted = [(a, seed) for seed in range(seeds) for a in ALGORITHMS]
        list(pool.map(lambda w: train(runs, *w, epochs[w[0]]), wanted))
    curves = [Curve(a, seed, list(points(runs / f"{a}-{seed}"))) for a, seed in wanted]
    to.mkdir(parents=True, exist_ok=True)
    draw(curves, to / "curves.png")
    for algorithm in ALGORITHMS:
        copyfile(runs / f"{algorithm}-0" / "before-after.png", to / f"{algorithm}.png")
    (to / "index.md").write_text(page(curves, epochs, budget), encoding="utf-8")


def calls_per_epoch(algorithm: str) -> int:
    """Measured, not computed: one epoch under `flowfactory bench`."""
    arguments = ["bench", str(HERE / f"{algorithm}.toml"), "--epochs", "1", "--warmup", "0", "--json"]
    measured = json.loads(flowfactory(*arguments))
    return int(measured["forward"] + measured["trained"])


def train(runs: Path, algorithm: str, seed: int, epochs: int) -> None:
    """One run, unless it is finished already."""
    folder = runs / f"{algorithm}-{seed}"
    if (folder / "metrics.jsonl").exists() and lines(folder)[-1]["epoch"] == epochs:
        return
    if folder.exists():
        flowfactory("resume", str(folder))
    else:
        changes = [f"--set=run.seed={seed}", f"--set=run.epochs={epochs}", "--folder", str(folder)]
        flowfactory("run", str(HERE / f"{algorithm}.toml"), *changes)
    click.echo(f"{algorithm}, seed {seed}: done")


def flowfactory(*arguments: str) -> str:
    """The output of a flowfactory command in a process of its own, with one thread."""
    command = [sys.executable, "-m", "flowfactory", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise click.ClickException(f"flowfactory {' '.join(arguments)}:\n{done.stderr}")
    return done.stdout


def lines(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def points(folder: Path) -> Iterator[Point]:
    """The evaluations of a run; seconds of evaluating do not count."""
    calls = seconds = 0.0
    for line in lines(folder):
        calls += line.get("network/forward", 0) + line.get("network/trained", 0)
        if line["epoch"]:
            seconds += sum(v for k, v in line.items() if k.startswith("time/") and k != "time/evaluate")
        if REWARD in line:
            yield Point(calls, seconds / 60, line[REWARD], line[CORRECT])


def draw(curves: Sequence[Curve], file: Path) -> None:
    """Held-out reward against calls and against minutes: each run thin, the mean of the seeds thick."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for number, algorithm in enumerate(ALGORITHMS):
        own = [curve for curve in curves if curve.algorithm == algorithm]
        for axis, spent in zip(axes, ("calls", "minutes"), strict=True):
            xs = [[getattr(p, spent) for p in curve.points] for curve in own]
            ys = [[p.reward for p in curve.points] for curve in own]
            for x, y in zip(xs, ys, strict=True):
                axis.plot(x, y, color=f"C{number}", alpha=0.25, linewidth=0.8)
            means = [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in (xs, ys)]
            axis.plot(*means, color=f"C{number}", linewidth=2, label=algorithm)
    axes[0].set(xlabel="transformer calls", ylabel="held-out graded reward")
    axes[1].set(xlabel="minutes of training, one thread")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def page(curves: Sequence[Curve], epochs: dict[str, int], budget: int) -> str:
    """The table, and the pictures below it."""
    seeds = 1 + max(curve.seed for curve in curves)
    text = [
        "# Results",
        "",
        "Five algorithms from one base, the embedded checkpoint of `shapes`: the same prompts, the same optimizer,",
        f"about {budget} transformer calls each (a call is one sample through the transformer), {seeds} seeds.",
        "The rewards are those of held-out prompts, before and after, with the spread (standard deviation) over seeds.",
        "Calls are counted. Minutes are of one thread, with whatever else the machine did meanwhile.",
        "Made by `make reproduce`; the specs are in `plugins/shapes/reproduce/`.",
        "",
        "| algorithm | epochs | calls | graded before | graded after | correct before | correct after | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for algorithm in ALGORITHMS:
        own = [curve.points for curve in curves if curve.algorithm == algorithm]
        last = [points[-1] for points in own]
        before, after = own[0][0], [p.reward for p in last]
        spread = statistics.stdev(after) if len(after) > 1 else 0.0
        right = statistics.fmean(p.correct for p in last)
        calls = statistics.fmean(p.calls for p in last)
        text.append(
            f"| {algorithm} | {epochs[algorithm]} | {calls:.0f} | {before.reward:.3f} "
            f"| {statistics.fmean(after):.3f} ± {spread:.3f} | {before.correct:.1%} | {right:.1%} "
            f"| {statistics.fmean(p.minutes for p in last):.1f} |"
        )
    text += ["", "![Curves](curves.png)", "", "The same held-out prompts and noise, before and after, seed 0:", ""]
    for algorithm in ALGORITHMS:
        text += [f"## {algorithm}", "", f"![{algorithm}]({algorithm}.png)", ""]
    return "\n".join(text)


if __name__ == "__main__":
    main()
