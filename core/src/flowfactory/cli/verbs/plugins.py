"""Verbs about plugins: `plugins list`, `plugins show`, `plugins check`, and `new`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from flowfactory.cli import completion
from flowfactory.cli.commands import Verbs
from flowfactory.cli.describe import describe, example
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.options import AnyPath, as_json, load_libraries, new_registry
from flowfactory.discovery.entries import KINDS, OBSERVERS, Contribution, noun
from flowfactory.errors import BAD_PLUGIN, BAD_SPEC, DONE, shortened, shown, typed
from flowfactory.spec.schema import table_schema

WIDEST = 40
"""Characters of a default that a table shows."""


@click.group(cls=Verbs)
def plugins() -> None:
    """Look at installed plugins."""


@plugins.command("list")
@as_json
@click.pass_obj
def list_plugins(ui: Ui, as_json: bool) -> int:
    """List every name that plugins provide, and why it cannot be used, if so. No plugin code runs.

    The exit code is 3 where two distributions share a name, or one needs another version of flowfactory.
    """
    registry = new_registry(ui)
    entries = registry.entries()
    troubles = [registry.troubles(entry) for entry in entries]
    rows = [(noun(e.kind), e.name, e.source.name, e.source.version) for e in entries]
    head = ("kind", "name", "distribution", "version")
    if as_json:
        described = zip(rows, troubles, strict=True)
        ui.json([{**dict(zip(head, row, strict=True)), "troubles": those} for row, those in described])
    elif any(troubles):
        ui.rows((*head, "trouble"), [(*row, "; ".join(those)) for row, those in zip(rows, troubles, strict=True)])
    else:
        ui.rows(head, rows)
    return BAD_PLUGIN if any(troubles) else DONE


@plugins.command("show")
@click.argument("name", shell_complete=completion.plugin_names)
@as_json
@click.pass_obj
def show_plugin(ui: Ui, name: str, as_json: bool) -> None:
    """Show what NAME (or NAME@DISTRIBUTION) is, the keys its table takes, and a table to paste."""
    registry = new_registry(ui)
    entries = registry.named(name)
    found = [registry.find(e.kind, f"{e.name}@{e.source.name}") for e in entries if e.kind != OBSERVERS]
    if as_json:
        ui.json([_contribution_json(contribution) for contribution in found])
        return
    for entry in entries:
        if entry.kind == OBSERVERS:
            ui.data(f'{entry.title}\n\nplugins = ["{entry.name}"]')
    for contribution in found:
        ui.data(f"{contribution.title}\n{contribution.provides.summary}\n")
        keys = describe(contribution.provides.spec)
        rows = [(k.name, k.type, shortened(k.default, WIDEST), k.doc) for k in keys]
        ui.rows(("key", "type", "default", ""), rows)
        ui.data(f"\n{example(contribution)}")


@plugins.command("check")
@click.argument("name", shell_complete=completion.checked_names)
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
    """Run every check that applies to a plugin; NAME is a distribution, a name it provides, or a local file."""
    with ui.phase("loading torch"):
        load_libraries()
        from flowfactory.cli import checking
    return checking.check(ui, name, sets, prompts, as_json)


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
        "example": example(contribution),
    }


@click.command()
@click.argument("kind", type=click.Choice(sorted(kind.name for kind in KINDS.values())))
@click.argument("name")
@click.option("--summary", help="What it is, in one line.")
@click.option("--author", help="Name of its author.")
@click.option("--license", "licence", help="SPDX name of its licence.")
@click.option(
    "--into", type=AnyPath(), default=".", help="The folder in which to make its own; the current one when absent."
)
@click.pass_obj
def new(
    ui: Ui, kind: str, name: str, summary: str | None, author: str | None, licence: str | None, into: Path
) -> int | None:
    """Make a plugin from a template, complete and tested. On a terminal, asks for options that are not given."""
    from flowfactory.cli import baking

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
    install = typed(Path(f"{folder}[test]"))
    ui.say(f"{shown(folder)} is ready; next: pip install --editable {install}, then pytest {typed(folder)}")
    return None
