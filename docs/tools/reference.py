"""The reference pages, written from the declarations: `python docs/tools/reference.py`. Imports no torch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import api
import click
import hook_pages
import plugin_pages
from flowfactory.cli.commands import KIND as COMMANDS
from flowfactory.cli.main import cli
from flowfactory.components.resolved import contributions
from flowfactory.contracts.specs import AdapterSpec, StochasticSpec, TrainerSpec
from flowfactory.data.sources import Data, DataSource
from flowfactory.discovery.entries import KINDS, installed_entries
from flowfactory.discovery.registry import Registry
from flowfactory.names import aliases, directory
from flowfactory.spec.structure import TABLES
from flowfactory.spec.tables import COMPONENTS, RewardEntry
from tables import about, inherited, keys_table, page, row

BASES: Mapping[str, Mapping[str, type]] = {
    "model": {"Every adapter takes:": AdapterSpec},
    "scheduler": {"Every stochastic scheduler takes:": StochasticSpec},
    "trainer": {"Every trainer takes:": TrainerSpec},
}
"""The classes whose keys plugins' tables share."""


def pages() -> Mapping[str, str]:
    """Every generated page by its file name."""
    own = {
        "spec.md": spec_page(),
        "hooks.md": hook_pages.hooks_page(),
        "cli.md": cli_page(),
        "plugins.md": plugins_page(),
        "coming-from.md": coming_from_page(),
    }
    return own | plugin_pages.pages() | {name: page([text]) for name, text in api.pages().items()}


# --- other programs -------------------------------------------------------------------------------------------------

COMING_FROM_INTRODUCTION = """
What other programs call the keys and names of a spec. `flowfactory check` knows the same table: an unknown key or
plugin that another program calls so is answered with its name here.
"""


def coming_from_page() -> str:
    """`docs/coming-from.md`."""
    keys = aliases.aliases("key")
    lines = ["# Coming from …", COMING_FROM_INTRODUCTION]
    for program in sorted({program for alias in keys for program in alias.words}, key=str.lower):
        lines += [f"## {program or 'Several programs'}", "", "| there | here | |", "|---|---|---|"]
        for alias in keys:
            if program in alias.words:
                there = ", ".join(f"`{word}`" for word in alias.words[program])
                lines.append(f"| {there} | {f'`{alias.here}`' if alias.here else ''} | {alias.note} |")
        lines.append("")
    lines += ["## Names", "", "| also called | here | |", "|---|---|---|"]
    for alias in aliases.aliases("plugin"):
        words = ", ".join(f"`{word}`" for word in alias.words[""])
        lines.append(f"| {words} | {KINDS[alias.kind].name} `{alias.here}` | {alias.note} |")
    return page(lines)


# --- the spec ------------------------------------------------------------------------------------------------------

SPEC_INTRODUCTION = """
A spec is a TOML file. Each table below lists its keys. A key whose default is *required* must be written. A key without
a default may be left out; its description says what happens then. `flowfactory schema` prints the same as a JSON Schema
for editors, with every installed plugin in it, and `flowfactory plugins show NAME` the keys of one plugin.

## Top level

| key | meaning |
|---|---|
| `extends` | Another spec, relative to this file. Tables merge, unless the plugin is another; the rest is replaced. |
| `requires` | Distributions that must be installed, e.g. `["flowfactory-plugin-x>=1.0"]`. |
| `plugins` | Further plugins to load: observers by name, and local files, e.g. `["./my_rewards.py"]`. |

On the command line, `--unset a.b` removes a key, and `--set a.b=value` changes one; all `--unset` come first.
`reward[0].weight` is a key of the first entry of an array.

**Locations.** A path is relative to the file that writes it; on the command line, to the current folder.
`package:resource` is a file or folder inside an installed package. For models, a text such as `owner/name` that is not
the path of a file or folder is the id of a model on the Hugging Face hub. Data files may be at
`hf://datasets/owner/name/path`, on the hub: see [Data](data.md#datasets-of-the-hub).

**Functions** are `./file.py:name`, relative like a path, or `package.module:name`. A check imports none of them.

**Sizes** are in pixels: a number (square), `[height, width]` or `[height, width, frames]`.

**What to train**: exactly one of `[lora]` and `[full]`.
"""


def spec_page() -> str:
    """`docs/spec.md`."""
    lines = ["# The spec", SPEC_INTRODUCTION]
    for name, cls in TABLES.items():
        lines += [f"## `[{name}]`", "", *about(cls, f"`[{name}]`"), *keys_table(cls)]
        if cls is Data:
            title = "`[[data.source]]`"
            lines += [f"## {title}", "", *about(DataSource, title), *keys_table(DataSource)]
    for name, kind in COMPONENTS.items():
        lines += [
            f"## `[{name}]`",
            "",
            f"`name` says which {KINDS[kind].name}: its public name, or `name@distribution`",
        ]
        lines += ["where two distributions share one. The plugin's own keys come beside it.", ""]
        lines += [line for intro, cls in BASES[name].items() for line in (intro, "", *keys_table(cls))]
    lines += ["## `[[reward]]` and `[[eval.reward]]`", ""]
    lines += ["Core's keys; the reward's own come beside them.", "", *keys_table(RewardEntry, optional=("label",))]
    lines += ["## What core itself provides", "", *_provided()]
    return page(lines)


def _provided() -> Iterator[str]:
    registry = Registry([entry for entry in installed_entries() if entry.source.name == "flowfactory"])
    for kind, offers in contributions(registry)[0].items():
        for offer in offers:
            yield from (f"### {KINDS[kind].name} `{offer.provides.name}`", "", offer.provides.summary, "")
            yield from keys_table(offer.provides.spec, leave=inherited(offer.provides.spec))


# --- the command line ----------------------------------------------------------------------------------------------

CLI_INTRODUCTION = """
Progress and diagnostics go to stderr, data to stdout. Only `run`, `resume`, `export`, `sample`, `evaluate`,
`bench` and `env --devices` import torch.

`report` and `watch` come with the plugin `flowfactory-plugin-report`: see [Reports](reports.md).

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the run failed |
| 2 | bad usage or spec |
| 3 | a plugin is missing, conflicting or broken |
| 75 | stopped by SIGTERM or SIGHUP, with a checkpoint |
| 143, 129 | stopped by SIGTERM or SIGHUP before there was anything to save |
| 130 | interrupted |

| environment variable | meaning |
|---|---|
| `FLOWFACTORY_TRACE=1` | print every hook call to stderr |
| `NO_COLOR=1` | no colours |
| `WORLD_SIZE`, `RANK` | set by launchers (torchrun, accelerate); `run` then starts no processes of its own |
| `SLURM_STEP_NUM_TASKS`, `SLURM_PROCID` | the same, set by `srun`, for more than one task |

**Completion.** TAB completes verbs and options, names of plugins, specs, folders of runs, and the keys after `--set`
and `--unset`, also those of the plugins that the spec on the line names. To switch it on, add a line to the shell's
start-up file:

| shell | file | line |
|---|---|---|
| bash | `~/.bashrc` | `eval "$(_FLOWFACTORY_COMPLETE=bash_source flowfactory)"` |
| zsh | `~/.zshrc` | `eval "$(_FLOWFACTORY_COMPLETE=zsh_source flowfactory)"` |
| fish | `~/.config/fish/completions/flowfactory.fish` | `_FLOWFACTORY_COMPLETE=fish_source flowfactory \\| source` |
"""


def cli_page() -> str:
    """`docs/cli.md`."""
    lines = ["# The command line", CLI_INTRODUCTION]
    for path, command in commands(cli, "flowfactory"):
        lines += [f"## `{path}`", "", inspect.cleandoc(command.help or "").partition("\f")[0].strip(), ""]
        rows = [row(f"`{names}`", help) for names, help in _parameters(command)]
        lines += ["| argument or option | |", "|---|---|", *rows, ""] if rows else []
    return page(lines)


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command of core's below a group, with its whole name."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _parameters(command: click.Command) -> Iterator[tuple[str, str]]:
    context = click.Context(command)
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            yield parameter.make_metavar(context), "argument"
        elif (record := parameter.get_help_record(context)) is not None:
            yield record


# --- the plugin directory ------------------------------------------------------------------------------------------

PLUGINS_INTRODUCTION = """
Distributions to `pip install`. `flowfactory plugins list` shows what is installed, `flowfactory plugins show NAME` the
keys of one name. If a spec names a plugin of this list that is not installed, the message says what to install.
"""

PLUGINS_CLOSING = """
Core itself has the adapter `diffusers`, the schedulers, and two rewards that count JPEG bytes: see
[the spec](spec.md#what-core-itself-provides).

## To be listed

A plugin passes `flowfactory plugins check`, states ranges of flowfactory rather than one version, and says in one line
what it is. Add its table to `core/src/flowfactory/names/directory.toml`. The list says what exists, not that it was
audited: see [Security](security.md).
"""


def plugins_page() -> str:
    """`docs/plugins.md`."""
    lines = ["# Plugin directory", PLUGINS_INTRODUCTION, "| distribution | names | what |", "|---|---|---|"]
    for listing in directory.listings():
        kinds = {COMMANDS: "command", **{kind: known.name for kind, known in KINDS.items()}}
        named = [f"{kinds[kind]} `{name}`" for kind, names in listing.names.items() for name in names]
        link = f"[`{listing.distribution}`]({plugin_pages.path(listing.distribution)})"
        lines.append(row(link, ", ".join(named), listing.summary))
    return page([*lines, PLUGINS_CLOSING])


# --- writing -------------------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Write every page into a folder."""
    for name, text in pages().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
