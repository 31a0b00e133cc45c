"""Verbs for what runs have left: `export`. It imports torch once the run is known to be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import click

from flowfactory.cli import completion
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.options import as_json, load_libraries, new_registry
from flowfactory.contracts.key import Precision
from flowfactory.errors import DONE
from flowfactory.plan.plan import SPEC_FILE
from flowfactory.runs import folder as folders
from flowfactory.spec.structure import load_spec


def _epoch(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """The number of an epoch, or `best`."""
    if value is None or value == "best":
        return value
    if not value.isdecimal():
        raise click.BadParameter(f"expected the number of an epoch or `best`, not {value!r}", context, option)
    return int(value)


@click.command()
@click.argument("run", type=click.Path(path_type=Path), shell_complete=completion.runs)
@click.option(
    "--form",
    type=click.Choice(("lora", "kohya", "merged")),
    default="lora",
    show_default=True,
    help="LoRA for diffusers, LoRA in kohya's key layout for ComfyUI too, or the whole pipeline.",
)
@click.option(
    "--epoch",
    callback=_epoch,
    metavar="N|best",
    help="Of which checkpoint, or of that of the best evaluation; the last when absent.",
)
@click.option("--weights", help="Which set, e.g. `current`; the averaged one, if there is one, when absent.")
@click.option("--to", type=click.Path(path_type=Path), help="The folder to write; in the run's own when absent.")
@click.option(
    "--dtype",
    type=click.Choice(("fp32", "bf16", "fp16")),
    help="Number format to write; when absent fp32 for LoRA, the run's precision for a whole pipeline.",
)
@click.option("--base", metavar="PATH", help="Where the base model is, if no longer where the run had it.")
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
    with ui.phase("loading torch"):
        load_libraries()
        from flowfactory.export.export import export as write
    registry = new_registry(ui)
    sets = [] if base is None else [f"model.path={json.dumps(base)}"]
    spec = load_spec(run / SPEC_FILE, registry, sets, moved=True)
    model, source = registry.target("adapters", spec.model.name), registry.find("adapters", spec.model.name).source
    done = write(run, spec, model, source, ui, form, epoch, weights, to, dtype)
    if as_json:
        ui.json({"folder": str(done.folder), "difference": done.difference, "rounding": done.rounding})
    else:
        ui.data(str(done.folder))
    return DONE
