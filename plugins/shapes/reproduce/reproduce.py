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
CREDIT = ("stepgrpo", "stepgrpo-estimated", "tempflow", "branchgrpo")
SAMPLING = ("grpo", "grpo-guard", "flow-grpo-fast", "dppo", "nft", "awm", "dgpo", "crd", "dpo", "opd")
STORED = ("diffusion-dpo", "sft")
GRADIENTS = ("nft-colours", "draft", "refl")
STUDENTS = ("dmd", "tdm", "dmd-nft")
ALGORITHMS = (*SAMPLING, *CREDIT, *STORED, *GRADIENTS, *STUDENTS)
BEGINS = {"dmd-nft": "dmd"}
"""Who goes on from the run of whom, with the same seed."""
REWARD, CORRECT, COLOURS = (f"eval/{name}/mean" for name in ("shapes", "shapes-correct", "shapes-colours"))


@attrs.frozen
class Point:
    """An evaluation: what had been spent by then, and the held-out rewards; that of colours where it was asked.

    examples: pictures of the data, or samples made.
    """

    examples: float
    calls: float
    minutes: float
    reward: float
    correct: float
    colours: float | None


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
        calls = {a: budget // 3 if a in (*GRADIENTS, *STUDENTS) else budget for a in ALGORITHMS}
        lengths = dict(zip(ALGORITHMS, pool.map(lambda a: length(a, calls[a], examples), ALGORITHMS), strict=True))
        wanted = [(a, seed) for seed in range(seeds) for a in ALGORITHMS]
        for later in (False, True):
            now = [(a, seed) for a, seed in wanted if (a in BEGINS) == later]
            list(pool.map(lambda w: train(runs, *w, lengths[w[0]].epochs), now))
    curves = [Curve(a, seed, list(points(runs / f"{a}-{seed}", lengths[a]))) for a, seed in wanted]
    to.mkdir(parents=True, exist_ok=True)
    draw(curves, PANELS, to / "curves.png")
    draw(curves, BESIDE, to / "curves-credit.png")
    draw(curves, COLOURED, to / "curves-gradients.png", "colours")
    draw(curves, TAUGHT, to / "curves-students.png")
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
        if algorithm in BEGINS:
            changes.append(f"--set=full.from={(runs / f'{BEGINS[algorithm]}-{seed}').resolve()}")
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
            yield Point(
                line["epoch"] * length.examples, calls, seconds / 60, line[REWARD], line[CORRECT], line.get(COLOURS)
            )


PANELS = {
    "calls": ("transformer calls", SAMPLING),
    "examples": ("examples seen", STORED),
    "minutes": ("minutes of training, one thread", (*SAMPLING, *STORED)),
}
BESIDE = {
    "calls": ("transformer calls, those of looks and branches among them", ("grpo", *CREDIT)),
    "minutes": ("minutes of training, one thread", ("grpo", *CREDIT)),
}
COLOURED, TAUGHT = ({"calls": ("transformer calls", those)} for those in (GRADIENTS, STUDENTS))
"""What the held-out reward is drawn against, in which words, and for whom; other tables than the first apart."""


def draw(
    curves: Sequence[Curve], panels: Mapping[str, tuple[str, Sequence[str]]], file: Path, reward: str = "reward"
) -> None:
    """A held-out reward against what was spent: each run thin, the mean of the seeds thick."""
    size = (5 * len(panels) + 1.5 * (len(panels) == 1), 4.6)
    figure, (axes,) = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axis, (spent, (words, shown)) in zip(axes, panels.items(), strict=True):
        for algorithm in shown:
            colour = matplotlib.colormaps["tab20"](ALGORITHMS.index(algorithm) % 20)
            own = [curve for curve in curves if curve.algorithm == algorithm]
            xs = [[getattr(p, spent) for p in curve.points] for curve in own]
            ys = [[getattr(p, reward) for p in curve.points] for curve in own]
            for x, y in zip(xs, ys, strict=True):
                axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            means = [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in (xs, ys)]
            axis.plot(*means, color=colour, linewidth=2, label=algorithm)
        axis.set(xlabel=words)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=f"held-out {'graded reward' if reward == 'reward' else reward}")
    figure.legend(*axes[-1].get_legend_handles_labels(), frameon=False, loc="outside right center")
    figure.savefig(file, dpi=130)
    plt.close(figure)


def page(curves: Sequence[Curve], lengths: Mapping[str, Length], budget: int, examples: int) -> str:
    """The tables, and the pictures below them."""
    seeds, first = 1 + max(curve.seed for curve in curves), curves[0].points[0]
    text = [
        "# Results",
        "",
        "Algorithms from one base, the embedded checkpoint of `shapes`: the same prompts, the same optimizer,",
        f"{seeds} seeds. Rewards are those of held-out prompts, before and after, with the spread (standard deviation)",
        "over seeds. Calls and examples are counted. Minutes are of one thread; the machine did other work too.",
        "Made by `make reproduce`; the specs are in `plugins/shapes/reproduce/`.",
        "",
        f"About {budget} transformer calls each; a call is one sample through the transformer:",
        "",
        *table(curves, lengths, SAMPLING),
        "",
        "Credit by step and branches, as many calls, those of looks and branches among them:",
        "",
        *table(curves, lengths, CREDIT),
        "",
        "![Curves of credit by step and branches](curves-credit.png)",
        "",
        f"About {examples} examples each, pictures of the data, of which a pair has two; nothing is sampled:",
        "",
        *table(curves, lengths, STORED),
        "",
        f"The gradient of a reward beside comparisons by it: about {budget // 3} calls each, rewarded for the amounts",
        "of colour only. Calls with a gradient and calls without count the same.",
        "",
        *table(curves, lengths, GRADIENTS),
        "",
        "![Curves of gradients of rewards](curves-gradients.png)",
        "",
        f"Students of two steps, about {budget // 3} calls each. Before, they are the base in two steps; in eight it",
        f"has {first.reward:.3f} and {first.correct:.1%}. `dmd-nft` is DiffusionNFT on the student that `dmd` made.",
        "",
        *table(curves, lengths, STUDENTS),
        "",
        "![Curves of students](curves-students.png)",
    ]
    text += ["", "![Curves](curves.png)", "", "The same held-out prompts and noise, before and after, seed 0:", ""]
    for algorithm in ALGORITHMS:
        text += [f"## {algorithm}", "", f"![{algorithm}]({algorithm}.png)", ""]
    return "\n".join(text)


def table(curves: Sequence[Curve], lengths: Mapping[str, Length], algorithms: Sequence[str]) -> Iterator[str]:
    """What was spent and what came of it, a line for each algorithm."""
    graded, correct = ("graded before", "graded after"), ("correct before", "correct after")
    colours = ("colours before", "colours after") if algorithms == GRADIENTS else ()
    heads = ("algorithm", "epochs", "calls", "examples", *graded, *correct, *colours, "minutes")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for algorithm in algorithms:
        own = [curve.points for curve in curves if curve.algorithm == algorithm]
        first, last, mean = [points[0] for points in own], [points[-1] for points in own], statistics.fmean
        after = [p.reward for p in last]
        spread = statistics.stdev(after) if len(after) > 1 else 0.0
        cells = [algorithm, str(lengths[algorithm].epochs), f"{last[0].calls:.0f}", f"{last[0].examples:.0f}"]
        cells += [f"{mean(p.reward for p in first):.3f}", f"{mean(after):.3f} ± {spread:.3f}"]
        cells += [f"{mean(p.correct for p in ends):.1%}" for ends in (first, last)]
        cells += [f"{mean(p.colours or 0.0 for p in ends):.3f}" for ends in (first, last) if colours]
        yield f"| {' | '.join([*cells, f'{mean(p.minutes for p in last):.1f}'])} |"


if __name__ == "__main__":
    main()
