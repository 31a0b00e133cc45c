"""Verbs for what runs have left: `export`, `sample`, `runs`. The last imports no torch, the others late."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from flowfactory.cli import completion
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.options import AnyPath, as_json, load_libraries, new_registry
from flowfactory.components.resolved import components
from flowfactory.contracts.key import Precision
from flowfactory.contracts.types import Row
from flowfactory.data.locations import locate
from flowfactory.data.rows import load
from flowfactory.data.store import unpacked_folder
from flowfactory.discovery.registry import Registry
from flowfactory.errors import DONE, shown
from flowfactory.export import choosing
from flowfactory.metrics import overview
from flowfactory.plan import faults
from flowfactory.plan.plan import SPEC_FILE
from flowfactory.runs import folder as folders
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec


def _epoch(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """The number of an epoch, or `best`."""
    if value is None or value == "best":
        return value
    if not value.isdecimal():
        raise click.BadParameter(f"expected the number of an epoch or `best`, not {value!r}", context, option)
    return int(value)


TRAINED = (
    click.option(
        "--epoch",
        callback=_epoch,
        metavar="N|best",
        help="The checkpoint of epoch N, or that of the best evaluation; the last one when absent.",
    ),
    click.option(
        "--weights",
        help="Which set of weights, e.g. `current`; the averaged one (`ema`), if there is one, when absent.",
    ),
    click.option("--base", metavar="PATH", help="Path of the base model, if it was moved since the run."),
)


def of_trained_weights(command: Any) -> Any:
    """The options that say which weights of a run are meant."""
    for option in reversed(TRAINED):
        command = option(command)
    return command


def spec_of(run: Path, registry: Registry, base: str | None) -> Spec:
    """A run's own spec, which is sound although its data may be gone; and its model, where that was moved.

    Raises:
        SpecError: there is no such model, or the hub does not give it.
    """
    sets = [] if base is None else [f"model.path={json.dumps(base)}"]
    spec = load_spec(run / SPEC_FILE, registry, sets, moved=True)
    faults.refuse_absent(spec)
    return spec


@click.command()
@click.argument("run", type=AnyPath(), shell_complete=completion.runs)
@click.option(
    "--form",
    type=click.Choice(("lora", "kohya", "merged")),
    default="lora",
    show_default=True,
    help="LoRA for diffusers, LoRA in kohya's key layout for ComfyUI too, or the whole pipeline.",
)
@of_trained_weights
@click.option("--to", type=AnyPath(), help="The folder to write; when absent, one in the run's folder.")
@click.option(
    "--dtype",
    type=click.Choice(("fp32", "bf16", "fp16")),
    help="Number format to write; when absent fp32 for LoRA, the run's precision for a whole pipeline.",
)
@as_json
@click.pass_obj
def export(
    ui: Ui,
    run: Path,
    form: str,
    epoch: int | Literal["best"] | None,
    weights: str | None,
    to: Path | None,
    dtype: Precision | None,
    base: str | None,
    as_json: bool,
) -> int:
    """Write the weights of the run in folder RUN for diffusers, read them back and compare."""
    run, to = run.absolute(), to.absolute() if to else None
    folders.see(run)
    registry = new_registry(ui)
    spec = spec_of(run, registry, base)
    place, saved = choosing.place(run, spec, form, to), choosing.weights(run, spec, epoch, weights)
    with ui.phase("loading torch"):
        load_libraries()
        from flowfactory.export.export import export as write
    model, source = registry.target("adapters", spec.model.name), registry.find("adapters", spec.model.name).source
    done = write(run, spec, model, source, ui, form, saved, place, dtype)
    if as_json:
        ui.json({"folder": str(done.folder), "difference": done.difference, "rounding": done.rounding})
    else:
        ui.data(str(done.folder))
    return DONE


@click.command()
@click.argument("run", type=AnyPath(), shell_complete=completion.runs)
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option("--prompts", "file", type=click.Path(), help="A file of prompts, as [data] prompts names.")
@click.option("--negative", metavar="TEXT", help="The negative prompt of each PROMPT.")
@click.option("--image", "images", multiple=True, type=AnyPath(), help="An image that each PROMPT edits; repeatable.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Samples of each prompt.")
@click.option("--steps", type=click.IntRange(1), help="Sampling steps; as many as in evaluations when absent.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise.")
@of_trained_weights
@click.option("--to", type=AnyPath(), help="The folder to write; a new one in RUN when absent.")
@click.pass_obj
def sample(
    ui: Ui,
    run: Path,
    prompts: Sequence[str],
    file: str | None,
    negative: str | None,
    images: Sequence[Path],
    count: int,
    steps: int | None,
    seed: int,
    epoch: int | Literal["best"] | None,
    weights: str | None,
    to: Path | None,
    base: str | None,
) -> int:
    """Sample each PROMPT with the weights of the run in folder RUN, and with its base from the same noise."""
    run, to = run.absolute(), to.absolute() if to else None
    folders.see(run)
    rows = [Row(prompt, negative, tuple(path.absolute() for path in images)) for prompt in prompts]
    try:
        rows += load(locate(file, Path.cwd(), exists=True), unpacked_folder(None)) if file else []
    except ValueError as error:
        raise click.UsageError(f"--prompts: {error}") from error
    if not rows:
        raise click.UsageError("there is nothing to sample: give a PROMPT, or a file of them with --prompts")
    if missing := [path for path in images if not path.is_file()]:
        raise click.UsageError(f"there is no image {shown(missing[0])}")
    registry = new_registry(ui)
    spec = spec_of(run, registry, base)
    if to is not None:
        folders.vacant(to, "--to")
    folder = to or folders.new(run, "sampled")
    try:
        saved = choosing.weights(run, spec, epoch, weights)
        with ui.phase("loading torch"):
            load_libraries()
            from flowfactory.export.sample import sample as write
        parts = components(registry, spec.model.name, spec.scheduler.name, spec.trainer.name, [])
        sheet = write(run, spec, parts, ui, rows, folder, saved, count, seed, steps)
    finally:
        folders.forget(folder, having=set())
    ui.data(shown(sheet))
    return DONE


@click.command()
@click.argument("folder", default="runs", type=AnyPath())
@as_json
@click.pass_obj
def runs(ui: Ui, folder: Path, as_json: bool) -> int:
    """List the runs in FOLDER, the newest first: how far each is, and what it reached."""
    found = [overview.of(run) for run in overview.folders(folder)]
    if as_json:
        ui.json([run.as_json() for run in found])
        return DONE
    if not found:
        ui.say(f"there are no runs in {shown(folder)}")
        return DONE
    ui.rows(overview.HEAD, [run.row() for run in found])
    return DONE
