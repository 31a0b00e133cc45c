"""Verbs that train: `run`, `resume`, `bench`. They import torch, once their spec is known to be sound."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import click

from flowfactory.cli import commands, completion, launcher
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.options import (
    AnyPath,
    SpecFile,
    as_json,
    load_libraries,
    new_registry,
    with_changes,
)
from flowfactory.components.resolved import Components, components
from flowfactory.discovery.registry import Registry
from flowfactory.errors import (
    DONE,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    Ending,
    PluginError,
    RunError,
    SpecError,
    shown,
    typed,
)
from flowfactory.plan import disk, faults
from flowfactory.plan.plan import SPEC_FILE, Plan, make_plan
from flowfactory.processes import launch
from flowfactory.processes.parent import watch
from flowfactory.processes.stop import Stopped, listening
from flowfactory.runs import archive, resumption
from flowfactory.runs import folder as folders
from flowfactory.runs.files import writing
from flowfactory.spec.rules.teams import sharing
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec
from flowfactory.streams import prints_to_stderr

WATCH = "watch"
"""The command that shows a run while it goes on."""
LOADING = "600"
"""Seconds it waits for the run to begin."""


@click.command()
@click.argument("spec", type=SpecFile(), shell_complete=completion.specs)
@with_changes
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--runs", type=AnyPath(), default="runs", show_default=True, help="Where runs are kept.")
@click.option("--folder", type=AnyPath(), help="The run's own folder, instead of one in --runs.")
@click.option(
    "--watch", "watched", is_flag=True, help="Show it in a browser as it trains, as `flowfactory watch` does."
)
@click.pass_obj
def run(
    ui: Ui,
    spec: Path,
    sets: Sequence[str],
    unsets: Sequence[str],
    processes: int,
    runs: Path,
    folder: Path | None,
    watched: bool,
) -> int:
    """Train as SPEC says, into a new folder under --runs."""
    spec, runs = spec.absolute(), runs.absolute()  # plugins may go elsewhere
    folder = folder.absolute() if folder else None
    with listening(), ExitStack() as companions:
        world, main = launch.count(processes), launch.rank() == 0
        if watched:
            commands.see(WATCH)
        registry = new_registry(ui)
        rules = (*(disk.BEFORE_A_RUN if main else disk.RULES), sharing(world))
        loaded = load_spec(spec, registry, sets, unsets, rules, lambda note: ui.say(str(note)))
        plan = make_plan(loaded, registry.versions(), world)
        chosen = folder or runs / plan.spec.run.name
        if main and folder is None:
            chosen = folders.new(runs, plan.spec.run.name)
        elif main:
            folders.vacant(chosen)
        if watched and main:
            companions.enter_context(launcher.beside([WATCH, "--wait", LOADING, "--", str(chosen)]))
        if world > (launch.world_size() or 1):
            options = [f"--set={text}" for text in sets] + [f"--unset={text}" for text in unsets]
            try:
                return launcher.launch(world, ["run", shown(spec), *options, "--folder", shown(chosen)])
            finally:
                folders.forget(chosen, having=set())
        with folders.owned(chosen) if main else nullcontext():
            if main:
                folders.vacant(chosen)  # whoever had it a moment ago may have left something
                folders.begin(chosen, plan, registry.entries())
            return train(ui, plan, registry, chosen, resume=False)


@click.command()
@click.argument("run", type=AnyPath(), shell_complete=completion.runs)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--epochs", type=click.IntRange(1), help="The last epoch to train, to make a run longer.")
@click.pass_obj
def resume(ui: Ui, run: Path, processes: int, epochs: int | None) -> int:
    """Continue the run in folder RUN from its last checkpoint."""
    with listening():
        run, world = run.absolute(), launch.count(processes)
        folders.see(run)
        registry = new_registry(ui)
        sets = [] if epochs is None else [f"run.epochs={epochs}"]
        plan = make_plan(load_spec(run / SPEC_FILE, registry, sets), registry.versions(), world)
        if changed := resumption.changes(run, plan):
            raise click.UsageError(changed)
        faults.refuse(plan.spec)
        try:
            for line in resumption.lengthen(run, plan, write=launch.rank() == 0):
                ui.say(line)
        except RunError as error:
            raise click.UsageError(str(error)) from error
        if world > (launch.world_size() or 1):
            return launcher.launch(world, ["resume", "--", shown(run)])
        with folders.owned(run) if launch.rank() == 0 else nullcontext():
            if launch.rank() == 0:
                folders.room(run, plan)
            return train(ui, plan, registry, run, resume=True)


@click.command("bench")
@click.argument("spec", type=SpecFile(), shell_complete=completion.specs)
@with_changes
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Epochs before the measured ones.")
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="Epochs to measure.")
@click.option("--baseline", is_flag=True, help="Encode prompts in every epoch and keep the encoders, to compare with.")
@as_json
@click.pass_obj
def bench_spec(
    ui: Ui,
    spec: Path,
    sets: Sequence[str],
    unsets: Sequence[str],
    warmup: int,
    epochs: int,
    baseline: bool,
    as_json: bool,
) -> int:
    """Measure how a run of SPEC spends its time: seconds per phase, passes through the network, memory."""
    registry = new_registry(ui)
    plan = make_plan(load_spec(spec, registry, sets, unsets, disk.BEFORE_A_RUN), registry.versions())
    with ui.phase("loading torch"):
        load_libraries()
        from flowfactory.training.bench import bench, encode_always
        from flowfactory.training.encoding import load_model
    with prints_to_stderr():
        load = encode_always if baseline else load_model
        measured = bench(plan, resolved(plan.spec, registry), ui, warmup, epochs, load)
    if as_json:
        ui.json(measured.as_json())
        return DONE
    ui.rows(("phase", "seconds", "share", "of it in the network"), measured.rows())
    ui.data("\n".join(["", *measured.words()]))
    return DONE


def train(ui: Ui, plan: Plan, registry: Registry, folder: Path, resume: bool) -> int:
    """Run the loop; what goes wrong there is told here. Nothing is left of a run that did not come to its first epoch,
    unless it was stopped: then it can be resumed."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        watch(os.getppid())
    with _logging_to(folder, ui, quiet=launch.rank() > 0) as log:
        try:
            code = _train(ui, plan, registry, folder, resume, log)
        except Stopped as stopped:
            ui.say(f"stopped by {stopped}; go on with: flowfactory resume {typed(folder)}")
            return code_of(stopped, folder)
        except (PluginError, SpecError):
            _given_up(folder, resume)
            raise
    return code


def _train(ui: Ui, plan: Plan, registry: Registry, folder: Path, resume: bool, log: logging.Logger) -> int:
    with ui.phase("loading torch"):
        load_libraries()
        from flowfactory.processes.distributed import PeerLost
        from flowfactory.training import loop
    try:
        with prints_to_stderr():
            loop.run(plan, resolved(plan.spec, registry), folder, ui, resume=resume)
    except PeerLost as lost:
        _given_up(folder, resume)
        return lost.code
    except RunError as error:
        log.debug("the run failed", exc_info=True)
        ui.error("\n".join([str(error), *resumption.way_on(folder, error.repeats)]))
        _given_up(folder, resume)
        return error.code
    except (PluginError, SpecError, Ending):
        raise
    except BaseException:
        log.debug("the run failed", exc_info=True)
        what = f"{traceback.format_exc()}the run failed; this is in {shown(folder / folders.LOG)} too"
        ui.error("\n".join([what, *resumption.way_on(folder)]))
        return FAILED
    if launch.rank() == 0:
        ui.say(loop.closing_words(plan, folder))
    return DONE


def code_of(stopped: Stopped, folder: Path) -> int:
    """75 promises a checkpoint; without one, it is what shells say of a process that a signal has ended."""
    if stopped.outcome == "interrupted":
        return INTERRUPTED
    saved = stopped.saved or archive.checkpoints(folder / archive.CHECKPOINTS)
    return TERMINATED if saved else 128 + stopped.signal


def _given_up(folder: Path, resume: bool) -> None:
    if launch.rank() == 0 and not resume:
        folders.forget(folder)


def resolved(spec: Spec, registry: Registry) -> Components:
    """What the names of a spec stand for."""
    rewards = [entry.name for entry in (*spec.rewards, *spec.eval.rewards)]
    return components(registry, spec.model.name, spec.scheduler.name, spec.trainer.name, rewards)


class _Aloud(logging.Handler):
    """Says what is logged."""

    def __init__(self, ui: Ui) -> None:
        super().__init__(logging.WARNING)
        self._ui = ui

    def emit(self, record: logging.LogRecord) -> None:
        self._ui.say(self.format(record))


@contextmanager
def _logging_to(folder: Path, ui: Ui, quiet: bool) -> Iterator[logging.Logger]:
    """Everything to the run's log, warnings to stderr as well."""
    log = logging.getLogger("flowfactory")
    log.setLevel(logging.DEBUG)
    with writing(folder / folders.LOG):
        to_file = logging.FileHandler(folder / folders.LOG, encoding="utf-8", delay=quiet)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [] if quiet else [to_file, _Aloud(ui)]
    for handler in handlers:
        log.addHandler(handler)
    try:
        log.info("flowfactory %s", importlib.metadata.version("flowfactory"))
        yield log
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
