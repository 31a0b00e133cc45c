"""The command line. Imports torch only to run.

Exit codes: 0 done; 1 the run failed; 2 bad usage or spec; 3 plugin missing, conflicting or broken;
75 stopped by SIGTERM with a checkpoint; 130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from flowfactory import environment, launch
from flowfactory.commands import Commands
from flowfactory.describe import describe
from flowfactory.entries import KINDS, OBSERVERS, Contribution, Entry, installed_entries, noun
from flowfactory.plan import PLAN_FILE, SPEC_FILE, Plan, make_plan
from flowfactory.problems import BAD_PLUGIN, BAD_SPEC, PluginError, RunError, SpecError, did_you_mean, shown
from flowfactory.registry import Registry, tracing
from flowfactory.schema import spec_schema, table_schema
from flowfactory.structure import load_spec
from flowfactory.ui import Ui

LOG_FILE = "log.txt"
DONE, FAILED, TERMINATED, INTERRUPTED = 0, 1, 75, 130

changes = (
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a key, e.g. optimizer.lr=1e-4."),
    click.option("--unset", "unsets", multiple=True, metavar="KEY", help="Remove a key or table, e.g. lora."),
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    ui = Ui(quiet=launch.rank() > 0)
    try:
        code = cli.main(arguments, "flowfactory", standalone_mode=False, obj=ui)
    except SpecError as error:
        ui.error(report(error))
        return error.code
    except PluginError as error:
        ui.error(str(error))
        return BAD_PLUGIN
    except click.ClickException as error:
        error.show()
        return BAD_SPEC
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return int(code or DONE)


def report(error: SpecError) -> str:
    """Every problem, and how many there are."""
    count = len(error.problems)
    return "\n".join([*map(str, error.problems), f"{count} problem{'s' if count > 1 else ''}"])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("flowfactory"), prog_name="flowfactory")
def cli() -> None:
    """Fine-tune flow-matching image and video models by reinforcement learning."""


def with_changes(command: Any) -> Any:
    """The options `--set` and `--unset`."""
    for option in reversed(changes):
        command = option(command)
    return command


# --- running -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@with_changes
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where runs are kept.")
@click.option("--folder", type=click.Path(path_type=Path), help="The run's own folder, instead of one in --runs.")
@click.pass_obj
def run(
    ui: Ui, spec: Path, sets: Sequence[str], unsets: Sequence[str], processes: int, runs: Path, folder: Path | None
) -> int:
    """Train as SPEC says, into a new folder under --runs."""
    world = launch.world_size()
    registry = new_registry(ui)
    plan = make_plan(load_spec(spec, registry, sets, unsets), registry, world or processes)
    folder = folder or free_folder(runs, plan.spec.run.name)
    if world is None and processes > 1:
        options = [f"--set={text}" for text in sets] + [f"--unset={text}" for text in unsets]
        return launch.launch(processes, ["run", str(spec), *options, "--folder", str(folder)])
    if launch.rank() == 0:
        plan.write(folder)
        text = json.dumps(environment.metadata(registry.entries()), indent=2)
        (folder / "env.json").write_text(text + "\n", encoding="utf-8")
    return train(ui, plan, registry, folder, resume=False)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.pass_obj
def resume(ui: Ui, run: Path, processes: int) -> int:
    """Go on with the run in folder RUN from its last checkpoint."""
    if not (run / PLAN_FILE).is_file():
        raise click.UsageError(f"{shown(run)} is not the folder of a run: it has no {PLAN_FILE}")
    world = launch.world_size()
    registry = new_registry(ui)
    plan = make_plan(load_spec(run / SPEC_FILE, registry), registry, world or processes)
    before = json.loads((run / PLAN_FILE).read_text(encoding="utf-8"))
    if before["digest"] != plan.digest:
        what = f"{shown(run / SPEC_FILE)} or a file it names was changed since the run began"
        raise click.UsageError(f"{what}; start a new run with it instead")
    for name, version in before["versions"].items():
        now = plan.versions.get(name, "not in use")
        if now != version:
            ui.say(f"{name} was {version} when the run began and is {now} now")
    if world is None and processes > 1:
        return launch.launch(processes, ["resume", str(run)])
    return train(ui, plan, registry, run, resume=True)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--form",
    type=click.Choice(("lora", "kohya", "merged")),
    default="lora",
    show_default=True,
    help="LoRA for diffusers, LoRA in kohya's key layout for ComfyUI too, or the whole pipeline.",
)
@click.option("--epoch", type=click.IntRange(0), help="Of which checkpoint; the last when absent.")
@click.option("--weights", help="Which set, e.g. `current`; the averaged one, if there is one, when absent.")
@click.option("--to", type=click.Path(path_type=Path), help="The folder to write; in the run's own when absent.")
@as_json
@click.pass_obj
def export(ui: Ui, run: Path, form: str, epoch: int | None, weights: str | None, to: Path | None, as_json: bool) -> int:
    """Write the weights of the run in folder RUN for diffusers, read them back and compare."""
    if not (run / PLAN_FILE).is_file():
        raise click.UsageError(f"{shown(run)} is not the folder of a run: it has no {PLAN_FILE}")
    with ui.phase("loading torch"):
        _load_libraries()
        from flowfactory.export import export as write
    try:
        done = write(run, new_registry(ui), ui, form, epoch, weights, to)
    except RunError as error:
        ui.error(str(error))
        return FAILED
    if as_json:
        ui.json({"folder": str(done.folder), "difference": done.difference, "rounding": done.rounding})
    else:
        ui.data(str(done.folder))
    return DONE


def train(ui: Ui, plan: Plan, registry: Registry, folder: Path, resume: bool) -> int:
    """Run the loop; what goes wrong there is told here."""
    with _logging_to(folder, quiet=launch.rank() > 0) as log:
        with ui.phase("loading torch"):
            _load_libraries()
            from flowfactory import loop
            from flowfactory.data import DataError
            from flowfactory.distributed import PeerLost
            from flowfactory.stop import Stopped
        try:
            loop.run(plan, registry, folder, ui, resume=resume)
        except Stopped as stopped:
            ui.say(f"stopped by {stopped}; go on with: flowfactory resume {folder}")
            return TERMINATED if stopped.outcome == "terminated" else INTERRUPTED
        except DataError as error:
            ui.error(str(error))
            return BAD_SPEC
        except PeerLost:
            return FAILED
        except RunError as error:
            log.debug("the run failed", exc_info=True)
            ui.error(str(error))
            return FAILED
        except (PluginError, SpecError):
            raise
        except Exception:
            log.debug("the run failed", exc_info=True)
            ui.error(f"{traceback.format_exc()}the run failed; this is in {folder / LOG_FILE} too")
            return FAILED
        ui.say(loop.closing_words(folder))
    return DONE


def _load_libraries() -> None:
    """Import torch, diffusers and transformers as a command wants them.

    Their bars would break ours, and their advice is not about anything a user of this command can change. OpenMP's
    threads must sleep while they wait: spinning, two of them made a small model 60 times slower beside other work.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def free_folder(runs: Path, name: str) -> Path:
    """`runs/name`, or the first of `name-2`, `name-3`, … that does not exist yet."""
    numbered = (runs / (name if n == 1 else f"{name}-{n}") for n in range(1, 1_000_000))
    return next(folder for folder in numbered if not folder.exists())


@contextmanager
def _logging_to(folder: Path, quiet: bool) -> Iterator[logging.Logger]:
    """Everything to the run's log, warnings to stderr as well."""
    log = logging.getLogger("flowfactory")
    log.setLevel(logging.DEBUG)
    to_file = logging.FileHandler(folder / LOG_FILE, encoding="utf-8", delay=True)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.WARNING)
    handlers: list[logging.Handler] = [] if quiet else [to_file, to_stderr]
    for handler in handlers:
        log.addHandler(handler)
    try:
        log.info("flowfactory %s", importlib.metadata.version("flowfactory"))
        yield log
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


# --- looking -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True, type=click.Path(path_type=Path))
@with_changes
@as_json
@click.pass_obj
def check(ui: Ui, specs: Sequence[Path], sets: Sequence[str], unsets: Sequence[str], as_json: bool) -> int:
    """Find every mistake in each SPEC, without loading anything heavy."""
    entries, code, found = installed_entries(), DONE, []
    for spec in specs:
        registry = new_registry(ui, entries)
        try:
            make_plan(load_spec(spec, registry, sets, unsets), registry)
        except SpecError as error:
            code = max(code, error.code)
            found += [problem.as_json() for problem in error.problems]
            if not as_json:
                ui.error(report(error))
        else:
            ui.say(f"{shown(spec)}: ok")
    if as_json:
        ui.json(found)
    return code


@cli.command()
@click.argument("spec", type=click.Path(path_type=Path))
@with_changes
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes to plan for.")
@as_json
@click.pass_obj
def plan(ui: Ui, spec: Path, sets: Sequence[str], unsets: Sequence[str], processes: int, as_json: bool) -> None:
    """Show what SPEC would run: every number with its reason, versions, and the digest."""
    registry = new_registry(ui)
    made = make_plan(load_spec(spec, registry, sets, unsets), registry, launch.world_size() or processes)
    if as_json:
        ui.json(made.as_json())
        return
    ui.rows(("number", "value", "because"), [(n.name, str(n.value), n.reason) for n in made.numbers])
    ui.data("")
    ui.rows(("plugin", "version"), list(made.versions.items()))
    ui.data(f"\ndigest {made.digest}")


@cli.command("bench")
@click.argument("spec", type=click.Path(path_type=Path))
@with_changes
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Epochs before those that count.")
@click.option("--epochs", type=click.IntRange(1), default=3, show_default=True, help="Epochs that count.")
@as_json
@click.pass_obj
def bench_spec(
    ui: Ui, spec: Path, sets: Sequence[str], unsets: Sequence[str], warmup: int, epochs: int, as_json: bool
) -> int:
    """Measure where the time of SPEC goes: seconds per phase, passes through the network, memory."""
    registry = new_registry(ui)
    plan = make_plan(load_spec(spec, registry, sets, unsets), registry)
    with ui.phase("loading torch"):
        _load_libraries()
        from flowfactory.bench import bench
    try:
        measured = bench(plan, registry, ui, warmup, epochs)
    except RunError as error:
        ui.error(str(error))
        return FAILED
    if as_json:
        ui.json(measured.as_json())
        return DONE
    ui.rows(("phase", "seconds", "share"), measured.rows())
    ui.data("\n".join(["", *measured.words()]))
    return DONE


@cli.command("report")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write it.  [default: report.html in RUN, or here]"
)
@click.pass_obj
def report_runs(ui: Ui, runs: Sequence[Path], out: Path | None) -> int:
    """Write one page about the run in folder RUN, or about several side by side, and the curves as PNG beside it."""
    from flowfactory.report import PAGE, report  # matplotlib takes a second

    try:
        written = report(runs, out or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE)))
    except RunError as error:
        ui.error(str(error))
        return BAD_SPEC
    ui.say(f"the report is in {shown(written)}")
    return DONE


@cli.command()
@click.pass_obj
def schema(ui: Ui) -> None:
    """Print the JSON Schema of specs, for editors; every installed plugin is in it."""
    made, broken = spec_schema(new_registry(ui))
    for error in broken:
        ui.say(f"left out: {error}")
    ui.json(made)


@cli.command()
@click.argument("kind", type=click.Choice(sorted(kind.name for kind in KINDS.values())))
@click.argument("name")
@click.option("--summary", help="What it is, in one line.")
@click.option("--author", help="Whose it is.")
@click.option("--license", "licence", help="SPDX name of its licence.")
@click.option(
    "--into", type=click.Path(path_type=Path), default=".", help="Where its folder is made; here when absent."
)
@click.pass_obj
def new(
    ui: Ui, kind: str, name: str, summary: str | None, author: str | None, licence: str | None, into: Path
) -> int | None:
    """Make a plugin from a template, complete and tested. On a terminal, asks for what is not said."""
    from flowfactory import baking

    said = {"summary": summary, "author": author, "license": licence}
    answers = {key: value for key, value in said.items() if value is not None}
    for question, default in baking.questions(kind).items():
        if question not in (*answers, "name") and sys.stdin.isatty():
            answers[question] = click.prompt(question, default=default, err=True)
    try:
        folder = baking.bake(kind, name, answers, into)
    except ValueError as error:
        ui.error(str(error))
        return BAD_SPEC
    ui.say(f"{folder} is ready; next: pip install --editable '{folder}[test]', then pytest {folder}")
    return None


@cli.group()
def plugins() -> None:
    """Look at installed plugins."""


@plugins.command("list")
@as_json
@click.pass_obj
def list_plugins(ui: Ui, as_json: bool) -> None:
    """List every name plugins provide. No plugin code runs."""
    rows = [(noun(e.kind), e.name, e.source.name, e.source.version) for e in installed_entries()]
    head = ("kind", "name", "distribution", "version")
    if as_json:
        ui.json([dict(zip(head, row, strict=True)) for row in rows])
    else:
        ui.rows(head, rows)


@plugins.command("show")
@click.argument("name")
@as_json
@click.pass_obj
def show_plugin(ui: Ui, name: str, as_json: bool) -> None:
    """Show what NAME (or NAME@DISTRIBUTION) is and the keys its table takes."""
    registry = new_registry(ui)
    found = [registry.find(e.kind, f"{e.name}@{e.source.name}") for e in _named(registry, name)]
    if as_json:
        ui.json([_contribution_json(contribution) for contribution in found])
        return
    for contribution in found:
        ui.data(f"{contribution.title}\n{contribution.provides.summary}\n")
        ui.rows(("key", "type", "default", ""), [(k.name, k.type, k.default, k.doc) for k in _keys_of(contribution)])


@plugins.command("check")
@click.argument("name")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="ENTRY.KEY=VALUE",
    help="A key an entry needs, e.g. mine.url=http://[::1]:80",
)
@click.option("--prompts", metavar="PATH", help="Prompts to try entries on, in place of the kit's own.")
@as_json
@click.pass_obj
def check_plugin(ui: Ui, name: str, sets: Sequence[str], prompts: str | None, as_json: bool) -> int:
    """Run every check that NAME's entries owe; NAME is a distribution, or a name it provides."""
    with ui.phase("loading torch"):
        _load_libraries()
        from flowfactory.testing import shell
    return shell.check(ui, name, sets, prompts, as_json)


def _named(registry: Registry, wanted: str) -> list[Entry]:
    name, _, chosen = wanted.partition("@")
    entries = [entry for entry in registry.entries() if entry.kind != OBSERVERS]
    found = [e for e in entries if e.name == name and (not chosen or e.source.answers_to(chosen))]
    if not found:
        hint = did_you_mean(name, [e.name for e in entries]) or "see: flowfactory plugins list"
        raise PluginError("plugin-missing", f"no plugin `{wanted}` is installed", hint)
    return found


def _contribution_json(contribution: Contribution) -> dict[str, Any]:
    provides, source = contribution.provides, contribution.source
    return {
        "kind": KINDS[contribution.kind].name,
        "name": provides.name,
        "distribution": source.name,
        "version": source.version,
        "summary": provides.summary,
        "target": provides.target if isinstance(provides.target, str) else repr(provides.target),
        "schema": table_schema(provides.spec),
    }


def _keys_of(contribution: Contribution) -> Sequence[Any]:
    return describe(contribution.provides.spec)


@cli.command()
@click.option("--devices", is_flag=True, help="Also ask torch what it can compute on.")
@as_json
@click.pass_obj
def env(ui: Ui, devices: bool, as_json: bool) -> None:
    """Show versions and the machine, for reports."""
    facts = environment.metadata(installed_entries())
    if devices:
        facts |= environment.devices()
    if as_json:
        ui.json(facts)
        return
    flat = [(n, v) for n, v in facts.items() if not isinstance(v, dict)]
    flat += [(n, v) for table in ("packages", "plugins") for n, v in facts[table].items()]
    ui.rows(("what", "version"), [(name, "not installed" if value is None else str(value)) for name, value in flat])


def new_registry(ui: Ui, entries: Sequence[Entry] | None = None) -> Registry:
    """A registry that traces hook calls when the environment asks for it."""
    return Registry(entries, ui.trace if tracing() else None)
