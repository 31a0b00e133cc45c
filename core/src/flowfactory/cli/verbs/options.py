"""What several verbs share: options, exit codes, the registry, and torch where a verb wants it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from flowfactory.cli import completion
from flowfactory.cli.ui import Ui
from flowfactory.data.locations import file_of
from flowfactory.data.text import fits
from flowfactory.discovery.entries import Entry
from flowfactory.discovery.registry import Registry
from flowfactory.errors import SpecError


class AnyPath(click.Path):
    """A path, which need not be there."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, unless no file system could have it."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            fits(path.absolute())
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return path


class SpecFile(AnyPath):
    """The path of a spec, or `package:examples/x.toml`, one that an installed package has in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, which need not be there unless it is in a package."""
        try:
            return super().convert(file_of(os.fsdecode(value)), param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)


changes = (
    click.option(
        *("--set", "sets"),
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=completion.keys_to_set,
        help="Change a key, e.g. optimizer.lr=1e-4.",
    ),
    click.option(
        *("--unset", "unsets"),
        multiple=True,
        metavar="KEY",
        shell_complete=completion.keys_to_unset,
        help="Remove a key or table, e.g. lora.",
    ),
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def with_changes(command: Any) -> Any:
    """The options `--set` and `--unset`."""
    for option in reversed(changes):
        command = option(command)
    return command


def report(error: SpecError) -> str:
    """Every problem, and how many there are."""
    count = len(error.problems)
    return "\n".join([*map(str, error.problems), f"{count} problem{'s' if count > 1 else ''}"])


def new_registry(ui: Ui, entries: Sequence[Entry] | None = None) -> Registry:
    """A registry that traces hook calls when the environment asks for it."""
    tracing = os.environ.get("FLOWFACTORY_TRACE", "") not in ("", "0")
    return Registry(entries, ui.trace if tracing else None)


def load_libraries() -> None:
    """Import torch, diffusers and transformers as a command wants them.

    Their bars would break ours, and their advice is not about anything a user of this command can change. OpenMP's
    threads must sleep while they wait: spinning, two of them made a small model 60 times slower beside other work.
    How attention is computed is the spec's to say, not diffusers' variables'.
    """
    for name in [name for name in os.environ if name.startswith("DIFFUSERS_ATTN_")]:
        del os.environ[name]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
