"""`flowfactory rewards build SPEC`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from flowfactory import Display, read_spec

from flowfactory_plugin_isolated import ScorerSpec
from flowfactory_plugin_isolated.environments import BuildError, python_of

DONE, FAILED = 0, 1


@click.group()
def rewards() -> None:
    """What the rewards of a spec need beside it."""


@rewards.command(short_help="Build the environments of SPEC's isolated rewards before a run.")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a key first.")
@click.option("--unset", "unsets", multiple=True, metavar="KEY", help="Remove a key or table first.")
@click.pass_obj
def build(ui: Display, spec: Path, sets: Sequence[str], unsets: Sequence[str]) -> int:
    """Build the environments of SPEC's isolated rewards, so that a run needs no network for them.

    What is built already is used as it is. Building runs the installers of what the spec requires.
    """
    read = read_spec(spec, sets, unsets)
    entries = (*read.rewards, *read.eval.rewards)
    isolated: list[tuple[str, Any]] = [
        (entry.label, entry.spec) for entry in entries if isinstance(entry.spec, ScorerSpec)
    ]
    for label, scorer in dict.fromkeys(isolated):
        try:
            with ui.phase(f"the environment of reward {label!r}"):
                python = python_of(scorer, ui.say)
        except BuildError as error:
            ui.say(f"reward {label!r}: {error}")
            return FAILED
        ui.say(f"reward {label!r} runs in {python.parents[1]}")
    if not isolated:
        ui.say("no reward of this spec has an environment of its own")
    return DONE
