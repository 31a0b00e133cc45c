"""Train every algorithm from the same base, on the same prompts, with the same budget.

    python plugins/shapes/reproduce/reproduce.py --to docs/results

The budget is one of transformer calls: a call is one sample that passes the transformer once, forward only or with a
backward pass. That of algorithms that learn from the data, which sample nothing, is one of examples seen. What is
written: curves of the held-out reward, a before/after sheet per algorithm, and tables. Runs that are already finished
are not made again.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copyfile

import attrs
import click
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
SAMPLING = ("grpo", "grpo-guard", "flow-grpo-fast", "dppo", "nft", "awm", "dgpo", "crd", "dpo", "opd")
STORED = ("diffusion-dpo", "sft")
ALGORITHMS = (*SAMPLING, *STORED)
REWARD, CORRECT = "eval/shapes/mean", "eval/shapes-correct/mean"


@attrs.frozen
class Point:
    """An evaluation: what had been spent by then, and the held-out rewards.

    examples: pictures of the data, or samples made.
    """

    examples: float
    calls: float
    minutes: float
    reward: float
    correct: float


@attrs.frozen
class Length:
    """How long an algorithm is trained, and what an epoch of it takes."""

    epochs: int
    examples: int
    calls: int


@attrs.frozen
class Curve:
    """The evaluations of one run, the one before training first."""

    algorithm: str
    seed: int
    points: Sequence[Point]


@click.command(help=__doc__)
@click.option("--to", type=click.Path(path_type=Path), required=True, help="Where the page and its pictures go.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs/reproduce", show_default=True)
@click.option("--budget", default=30_000, show_default=True, help="Transformer calls of each run that samples, about.")
@click.option("--examples", default=5_184, show_default=True, help="Pictures that each run on stored data sees, about.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", default=os.cpu_count(), show_default="one per core", help="Runs at a time, one thread each.")
def main(to: Path, runs: Path, budget: int, examples: int, seeds: int, jobs: int) -> None:
    """Make what runs are missing, then the page."""
    with ThreadPoolExecutor(jobs) as pool:
        lengths = dict(zip(ALGORITHMS, pool.map(lambda a: length(a, budget, examples), ALGORITHMS), strict=True))
        wanted = [(a, seed) for seed in range(seeds) for a in ALGORITHMS]
        list(pool.map(lambda w: train(runs, *w, lengths[w[0]].epochs), wanted))
    curves = [Curve(a, seed, list(points(runs / f"{a}-{seed}", lengths[a]))) for a, seed in wanted]
    to.mkdir(parents=True, exist_ok=True)
    draw(curves, to / "curves.png")
    for algorithm in ALGORITHMS:
        copyfile(runs / f"{algorithm}-0" / "before-after.png", to / f"{algorithm}.png")
    (to / "index.md").write_text(page(curves, lengths, budget, examples), encoding="utf-8")


def length(algorithm: str, budget: int, examples: int) -> Length:
    """As long as the budget allows. What an epoch takes is measured, not computed: one under `flowfactory bench`."""
    arguments = ["bench", str(HERE / f"{algorithm}.toml"), "--epochs", "1", "--warmup", "0", "--json"]
    measured = json.loads(flowfactory(*arguments))
    calls, seen = int(measured["forward"] + measured["trained"]), int(measured["samples"])
    return Length(examples // seen if algorithm in STORED else budget // calls, seen, calls)


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


def points(folder: Path, length: Length) -> Iterator[Point]:
    """The evaluations of a run; seconds of evaluating do not count."""
    calls = seconds = 0.0
    for line in lines(folder):
        calls += line.get("network/forward", 0) + line.get("network/trained", 0)
        if line["epoch"]:
            seconds += sum(v for k, v in line.items() if k.startswith("time/") and k != "time/evaluate")
        if REWARD in line:
            yield Point(line["epoch"] * length.examples, calls, seconds / 60, line[REWARD], line[CORRECT])


PANELS = {
    "calls": ("transformer calls", SAMPLING),
    "examples": ("examples seen", STORED),
    "minutes": ("minutes of training, one thread", ALGORITHMS),
}
"""What the held-out reward is drawn against, in which words, and for whom."""


def draw(curves: Sequence[Curve], file: Path) -> None:
    """Held-out reward against what was spent: each run thin, the mean of the seeds thick."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 4.6), sharey=True, layout="constrained")
    for axis, (spent, (words, shown)) in zip(axes, PANELS.items(), strict=True):
        for algorithm in shown:
            colour = matplotlib.colormaps["tab20"](ALGORITHMS.index(algorithm))
            own = [curve for curve in curves if curve.algorithm == algorithm]
            xs = [[getattr(p, spent) for p in curve.points] for curve in own]
            ys = [[p.reward for p in curve.points] for curve in own]
            for x, y in zip(xs, ys, strict=True):
                axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            means = [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in (xs, ys)]
            axis.plot(*means, color=colour, linewidth=2, label=algorithm)
        axis.set(xlabel=words)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="held-out graded reward")
    figure.legend(*axes[-1].get_legend_handles_labels(), frameon=False, loc="outside right center")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def page(curves: Sequence[Curve], lengths: Mapping[str, Length], budget: int, examples: int) -> str:
    """The tables, and the pictures below them."""
    seeds = 1 + max(curve.seed for curve in curves)
    text = [
        "# Results",
        "",
        "Algorithms from one base, the embedded checkpoint of `shapes`: the same prompts, the same optimizer,",
        f"{seeds} seeds. Rewards are those of held-out prompts, before and after, with the spread (standard deviation)",
        "over seeds. Calls and examples are counted. Minutes are of one thread, with whatever else the machine did.",
        "Made by `make reproduce`; the specs are in `plugins/shapes/reproduce/`.",
        "",
        f"About {budget} transformer calls each; a call is one sample through the transformer:",
        "",
        *table(curves, lengths, SAMPLING),
        "",
        f"About {examples} examples each, pictures of the data, of which a pair has two; nothing is sampled:",
        "",
        *table(curves, lengths, STORED),
    ]
    text += ["", "![Curves](curves.png)", "", "The same held-out prompts and noise, before and after, seed 0:", ""]
    for algorithm in ALGORITHMS:
        text += [f"## {algorithm}", "", f"![{algorithm}]({algorithm}.png)", ""]
    return "\n".join(text)


def table(curves: Sequence[Curve], lengths: Mapping[str, Length], algorithms: Sequence[str]) -> Iterator[str]:
    """What was spent and what came of it, a line for each algorithm."""
    graded, correct = ("graded before", "graded after"), ("correct before", "correct after")
    heads = ("algorithm", "epochs", "calls", "examples", *graded, *correct, "minutes")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for algorithm in algorithms:
        own = [curve.points for curve in curves if curve.algorithm == algorithm]
        before, last = own[0][0], [points[-1] for points in own]
        after = [p.reward for p in last]
        spread = statistics.stdev(after) if len(after) > 1 else 0.0
        right, minutes = statistics.fmean(p.correct for p in last), statistics.fmean(p.minutes for p in last)
        yield (
            f"| {algorithm} | {lengths[algorithm].epochs} | {last[0].calls:.0f} | {last[0].examples:.0f} "
            f"| {before.reward:.3f} | {statistics.fmean(after):.3f} ± {spread:.3f} "
            f"| {before.correct:.1%} | {right:.1%} | {minutes:.1f} |"
        )


if __name__ == "__main__":
    main()
