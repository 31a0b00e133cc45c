"""The verb `evaluate`: what any rewards say of trained weights and their base. Imports torch late."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs
import click

from flowfactory.cli import completion
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.options import AnyPath, as_json, load_libraries, new_registry
from flowfactory.cli.verbs.results import of_trained_weights, spec_of
from flowfactory.components.resolved import components
from flowfactory.contracts.types import Row
from flowfactory.data.locations import locate
from flowfactory.data.rows import load
from flowfactory.data.sources import load_held_out
from flowfactory.data.store import unpacked_folder
from flowfactory.discovery.registry import Registry
from flowfactory.errors import DONE, listed, shown
from flowfactory.export import choosing
from flowfactory.plan.plan import PLAN_FILE, SPEC_FILE
from flowfactory.runs import folder as folders
from flowfactory.spec.structure import load_rewards
from flowfactory.spec.tables import RewardEntry, Spec
from flowfactory.streams import prints_to_stderr


@click.command()
@click.argument("run", metavar="RUN|EXPORT", type=AnyPath(), shell_complete=completion.runs)
@click.option("--prompts", "file", type=click.Path(), help="A file of prompts; the run's held-out ones when absent.")
@click.option(
    "--rewards",
    "wanted",
    multiple=True,
    metavar="FILE|NAME",
    help="A .toml file with [[reward]] tables; or a reward by its label in the run or its name. Repeatable; those of "
    "the run's evaluations when absent.",
)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Samples of each prompt.")
@click.option("--steps", type=click.IntRange(1), help="Sampling steps; as many as in evaluations when absent.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@of_trained_weights
@click.option(
    "--to",
    type=AnyPath(),
    help="The folder to write; when absent, a new one in the run's folder, or beside an export that has none.",
)
@as_json
@click.pass_obj
def evaluate(
    ui: Ui,
    run: Path,
    file: str | None,
    wanted: Sequence[str],
    count: int,
    steps: int | None,
    seed: int,
    epoch: int | Literal["best"] | None,
    weights: str | None,
    base: str | None,
    to: Path | None,
    as_json: bool,
) -> int:
    """Score prompts by the weights of the run in folder RUN, or of an export, and by the base from the same noise.

    Prints a table to paste: means of both, their difference, and its uncertainty.
    """
    run, to = run.absolute(), to.absolute() if to else None
    home = _home(run)
    exported = home is None or home != run
    if exported and (epoch is not None or weights is not None):
        raise click.UsageError("an export has one set of weights: --epoch and --weights are for a run")
    registry = new_registry(ui)
    spec = spec_of(home or run, registry, base)
    rows = _rows(spec, file)
    entries = _entries(wanted, spec, (home or run) / SPEC_FILE, registry)
    names = spec.model.name, spec.scheduler.name, spec.trainer.name
    if to is not None:
        folders.vacant(to, "--to")
    folder = to or folders.new(home or run.parent, "evaluated")
    try:
        saved = None if exported else choosing.weights(run, spec, epoch, weights)
        with ui.phase("loading torch"):
            load_libraries()
            from flowfactory.export import pair
            from flowfactory.export.evaluate import Asked, evaluate
        parts = components(registry, *names, [entry.name for entry in entries])
        asked = Asked(rows, count, seed, steps, spec.run.save_samples, _which(run, exported, epoch, weights))
        trained = pair.of_export(run, spec) if saved is None else pair.of_run(saved, spec)
        with prints_to_stderr(), pair.told(run), trained as place:
            done = evaluate(place, spec, parts, entries, ui, asked, folder)
    finally:
        folders.forget(folder, having=set())
    if as_json:
        ui.json(done.as_json())
    else:
        ui.data(done.markdown())
    ui.say(f"scores and samples are in {shown(folder)}")
    return DONE


def _home(place: Path) -> Path | None:
    """The folder of a run: itself, or the one that an export lies in; none for an export elsewhere.

    Raises:
        FolderError: it is neither.
    """
    if not (place / folders.EXPORT).is_file():
        folders.see(place)
        return place
    run = place.parent.parent
    if place.parent.name == "export" and (run / PLAN_FILE).is_file():
        return run
    if not (place / SPEC_FILE).is_file():
        raise click.UsageError(f"{shown(place)} has no {SPEC_FILE}, which says what was trained: export the run again")
    return None


def _which(place: Path, exported: bool, epoch: int | str | None, weights: str | None) -> str:
    if exported:
        return f"The export `{place.name}`"
    which = {None: "the last checkpoint", "best": "the best checkpoint"}.get(epoch, f"epoch {epoch}")  # type: ignore[arg-type]
    return f"Run `{place.name}`, {which}" + (f", weights `{weights}`" if weights else "")


def _rows(spec: Spec, file: str | None) -> list[Row]:
    """The prompts to look at.

    Raises:
        click.UsageError: there are none.
    """
    if file is None:
        rows = load_held_out(spec.data, unpacked_folder(spec.memory.cache))
        why = "the run holds no prompts out: name a file of them with --prompts"
    else:
        try:
            rows = load(locate(file, Path.cwd(), exists=True), unpacked_folder(None))
        except ValueError as error:
            raise click.UsageError(f"--prompts: {error}") from error
        why = f"there is no prompt in {file}"
    if not rows:
        raise click.UsageError(why)
    return [attrs.evolve(row, source="") for row in rows]


def _entries(wanted: Sequence[str], spec: Spec, place: Path, registry: Registry) -> list[RewardEntry]:
    """The rewards to ask, whatever source samples are from.

    Raises:
        click.UsageError: two have one label, or there are none.
    """
    own = {entry.label: entry for entry in (*spec.rewards, *spec.eval.rewards)}
    found: list[RewardEntry] = [] if wanted else list(spec.eval.rewards or spec.rewards)
    for text in wanted:
        if text.endswith(".toml"):
            found += load_rewards(Path(text), registry)
        elif text in own:
            found.append(own[text])
        else:
            found += load_rewards(place, registry, [f"reward=[{{name = {json.dumps(text)}}}]"])
    if twice := [label for label, count in Counter(entry.label for entry in found).items() if count > 1]:
        raise click.UsageError(
            f"--rewards: several rewards are labelled {listed(twice)}; give each a `label` of its own"
        )
    if not found:
        raise click.UsageError("the run asks no reward: name some with --rewards")
    return [attrs.evolve(entry, sources=None) for entry in found]
