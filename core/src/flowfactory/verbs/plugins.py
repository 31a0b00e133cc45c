"""Verbs about plugins: `plugins list`, `plugins show`, `plugins check`, and `new`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from flowfactory import completion
from flowfactory.describe import describe
from flowfactory.entries import KINDS, OBSERVERS, Contribution, Entry, installed_entries, noun
from flowfactory.problems import BAD_SPEC, PluginError, did_you_mean
from flowfactory.registry import Registry
from flowfactory.schema import table_schema
from flowfactory.ui import Ui
from flowfactory.verbs.options import as_json, load_libraries, new_registry


@click.group()
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
@click.argument("name", shell_complete=completion.plugin_names)
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
    """Run every check that NAME's entries owe; NAME is a distribution, or a name it provides."""
    with ui.phase("loading torch"):
        load_libraries()
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


@click.command()
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
