"""Verbs that look without computing: `check`, `plan`, `schema`, `env`. None imports torch unasked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from flowfactory.builtin import PipelineSpec
from flowfactory.cli import completion
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.options import SpecFile, as_json, new_registry, report, with_changes
from flowfactory.discovery.entries import installed_entries
from flowfactory.discovery.registry import Registry
from flowfactory.errors import DONE, Problem, RunError, SpecError, shown
from flowfactory.plan import disk, faults
from flowfactory.plan.checkpoint import Part
from flowfactory.plan.estimate import estimate
from flowfactory.plan.plan import make_plan
from flowfactory.plan.working import Measured, readable
from flowfactory.processes import launch, traffic
from flowfactory.runs import environment
from flowfactory.spec.rules.teams import sharing
from flowfactory.spec.schema import spec_schema
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec


@click.command()
@click.argument(
    "specs",
    metavar="SPEC...",
    nargs=-1,
    required=True,
    type=SpecFile(),
    shell_complete=completion.specs,
)
@with_changes
@as_json
@click.pass_obj
def check(ui: Ui, specs: Sequence[Path], sets: Sequence[str], unsets: Sequence[str], as_json: bool) -> int:
    """Find every mistake in each SPEC, without loading a model."""
    entries, code, found = installed_entries(), DONE, []
    for spec in specs:
        registry = new_registry(ui, entries)
        try:
            notes: list[Problem] = []
            make_plan(load_spec(spec, registry, sets, unsets, disk.RULES, notes.append), registry.versions())
        except SpecError as error:
            code = max(code, error.code)
            found += [problem.as_json() for problem in error.problems]
            if not as_json:
                ui.error(report(error))
        else:
            found += [note.as_json() for note in notes]
            ui.say("\n".join([*map(str, notes), f"{shown(spec)}: ok"]))
    if as_json:
        ui.json(found)
    return code


class Bandwidth(click.ParamType[float]):
    """Bytes a second, from `50GB/s` or `400Gbit/s`."""

    name = "bandwidth"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        try:
            return value if isinstance(value, float) else traffic.bandwidth(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("spec", type=SpecFile(), shell_complete=completion.specs)
@with_changes
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes to plan for.")
@click.option("--exact", is_flag=True, help="Measure activations, on networks of the real sizes; needs no weights.")
@click.option(
    "--bandwidth", type=Bandwidth(), default="50GB/s", show_default=True, help="Rate at which a process can send."
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Samples a second of one process, as `bench` measures.",
)
@as_json
@click.pass_obj
def plan(
    ui: Ui,
    spec: Path,
    sets: Sequence[str],
    unsets: Sequence[str],
    processes: int,
    exact: bool,
    bandwidth: float,
    rate: float | None,
    as_json: bool,
) -> None:
    """Show what SPEC would run: every number with its reason, the memory it takes, versions, and the digest."""
    registry = new_registry(ui)
    world = launch.count(processes)
    rules = (*(disk.RULES_OF_CONFIGS if exact else disk.RULES), disk.ON_THE_HUB, sharing(world))
    loaded = load_spec(spec, registry, sets, unsets, rules, lambda note: ui.say(str(note)))
    made = make_plan(loaded, registry.versions(), world)
    known, measured = _exactly(ui, made.spec, registry) if exact else ({}, None)
    needed = estimate(made.spec, made.world, True, known, measured)
    sent = traffic.traffic(made, bandwidth, rate, known)
    for note in traffic.starved(made):
        ui.say(str(note))
    if as_json:
        between = {"between": sent.as_json()} if sent else {}
        ui.json(made.as_json() | {"memory": needed.as_json()} | between)
        return
    ui.rows(("number", "value", "because"), [(n.name, str(n.value), n.reason) for n in made.numbers])
    for head, needs in (("memory of a process", needed.parts), ("in use together", needed.phases)):
        if needs:
            ui.data("")
            ui.rows((head, "estimate", "because"), [(n.name, readable(n.bytes), n.reason) for n in needs])
    if sent:
        ui.data("")
        ui.rows(("sent by a process, a step", "estimate", "because"), sent.rows())
    ui.data("")
    ui.rows(("plugin", "version"), list(made.versions.items()))
    ui.data(f"\ndigest {made.digest}")


def _exactly(ui: Ui, spec: Spec, registry: Registry) -> tuple[Mapping[str, Part], Measured | None]:
    """The model's parts as its configs have them, and what was measured; if that cannot be, that is said."""
    known: Mapping[str, Part] = {}
    own = spec.model.spec
    for what, _ in faults.on_the_hub(own, needed=True) if isinstance(own, PipelineSpec) else ():
        ui.say(f"{what}; activations are estimated")  # a library would ask for each file again and again
        return known, None
    from flowfactory.training import exact  # torch takes seconds

    try:
        with ui.phase("measuring"):
            model = exact.model(spec, registry.target("adapters", spec.model.name))
            known = exact.parts(model)
            return known, exact.measure(spec, model)
    except RunError as error:
        ui.say(f"{error}; activations are estimated")
        return known, None


@click.command()
@click.pass_obj
def schema(ui: Ui) -> None:
    """Print the JSON Schema of specs, for editors; every installed plugin is in it."""
    made, broken = spec_schema(new_registry(ui))
    for error in broken:
        ui.say(f"left out: {error}")
    ui.json(made)


@click.command()
@click.option("--devices", is_flag=True, help="Also ask torch what it can compute on.")
@as_json
@click.pass_obj
def env(ui: Ui, devices: bool, as_json: bool) -> None:
    """Show versions and the machine: what a bug report should contain."""
    facts = environment.metadata(installed_entries())
    if devices:
        facts |= environment.devices()
    if as_json:
        ui.json(facts)
        return
    flat = [(n, v) for n, v in facts.items() if not isinstance(v, dict)]
    flat += [(n, v) for table in ("variables", "packages", "plugins") for n, v in facts[table].items()]
    ui.rows(("what", "value"), [(name, "not installed" if value is None else str(value)) for name, value in flat])
