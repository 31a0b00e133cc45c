"""What the shell offers when TAB is pressed: names, keys, specs and runs. Imports no torch.

Names come from metadata alone. For the keys of plugins the hook modules of those a spec names are loaded, but never a
local file: pressing TAB runs nothing that was not installed.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from flowfactory.cli.describe import describe
from flowfactory.data.sources import DataSource
from flowfactory.discovery.entries import KINDS, OBSERVERS, Entry, installed_entries, noun
from flowfactory.discovery.registry import Registry
from flowfactory.errors import PluginError, SpecError
from flowfactory.plan.plan import PLAN_FILE
from flowfactory.spec.layers import load
from flowfactory.spec.structure import TABLES
from flowfactory.spec.tables import COMPONENTS, RewardEntry
from flowfactory.spec.toml import Node

Items = list[CompletionItem[str]]


class Bash(BashComplete):
    """click's, without a space after a key that wants its value."""

    source_template = BashComplete.source_template.replace(
        "    return 0", "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n    return 0"
    )


add_completion_class(Bash)


def plugin_names(context: click.Context, parameter: click.Parameter, typed: str) -> Items:
    """Public names, as `name@distribution` where two share one."""
    entries = [entry for entry in installed_entries() if entry.kind != OBSERVERS]
    return _starting(typed, ((name, title(entries, name)) for name in _names(entries)))


def checked_names(context: click.Context, parameter: click.Parameter, typed: str) -> Items:
    """Distributions, and the names they provide."""
    entries = installed_entries()
    sources = sorted({entry.source.name for entry in entries})
    return _starting(typed, ((name, "") for name in sources)) + plugin_names(context, parameter, typed)


def specs(context: click.Context, parameter: click.Parameter, typed: str) -> Items:
    """TOML files, and folders on the way to them."""
    return _files(typed, sorted(glob.glob(glob.escape(typed) + "*.toml")))


def runs(context: click.Context, parameter: click.Parameter, typed: str) -> Items:
    """Folders of runs, also those one below: `runs/first` comes at once."""
    start = glob.escape(typed)
    plans = [*glob.glob(f"{start}*/{PLAN_FILE}"), *glob.glob(f"{start}*/*/{PLAN_FILE}")]
    return _files(typed, sorted(os.path.dirname(plan) for plan in plans))


def keys_to_set(context: click.Context, parameter: click.Parameter, typed: str) -> Items:
    """`table.key=` of core's tables, and of the plugins that the spec before it names."""
    return _starting(typed, ((f"{key}=", doc) for key, doc in _keys(_spec(context))))


def keys_to_unset(context: click.Context, parameter: click.Parameter, typed: str) -> Items:
    """What the spec before it has; every table and key when there is no readable one."""
    spec = _spec(context)
    if spec is not None:
        return _starting(typed, ((address, "") for address in _addresses(spec)))
    tables = ((name, "") for name in (*TABLES, *COMPONENTS, "reward"))
    return _starting(typed, [*tables, *_keys(None)])


def title(entries: Iterable[Entry], name: str) -> str:
    """What a name is and whose: `scheduler of flowfactory 0.1.0`."""
    return ", ".join(f"{noun(e.kind)} of {e.source}" for e in entries if name in (e.name, f"{e.name}@{e.source.name}"))


def _names(entries: Iterable[Entry]) -> list[str]:
    sources: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        sources.setdefault((entry.kind, entry.name), []).append(entry.source.name)
    names = {
        name if len(found) == 1 else f"{name}@{source}" for (_, name), found in sources.items() for source in found
    }
    return sorted(names)


def _keys(spec: Node | None) -> Iterator[tuple[str, str]]:
    registry = Registry()
    for table, cls in TABLES.items():
        yield from _of_class(table, cls)
    for table, kind in COMPONENTS.items():
        yield f"{table}.name", f"Which {KINDS[kind].name}."
        yield from _of_class(table, _plugin(registry, kind, spec, table) or KINDS[kind].base)
    sources = None if spec is None else spec.at("data", "source")
    for i in range(len(sources.value) if sources is not None and sources.is_array else 0):
        yield from _of_class(f"data.source[{i}]", DataSource)
    for i in range(_length(spec, "reward")):
        yield from _of_class(f"reward[{i}]", RewardEntry)
        own = _plugin(registry, "rewards", spec, "reward", i)
        if own is not None:
            yield from _of_class(f"reward[{i}]", own)


def _of_class(table: str, cls: type) -> Iterator[tuple[str, str]]:
    return ((f"{table}.{row.name}", row.doc) for row in describe(cls) if row.type != "table")


def _plugin(registry: Registry, kind: str, spec: Node | None, *address: str | int) -> type | None:
    """The spec class of the plugin a table names, if it is installed and sound."""
    name = None if spec is None else spec.at(*address, "name")
    if name is None or not isinstance(name.value, str):
        return None
    try:
        return registry.find(kind, name.value).provides.spec
    except PluginError:
        return None


def _spec(context: click.Context) -> Node | None:
    """The spec given on the line so far, with what it extends, if it can be read.

    An unfinished `--set` keeps click from assigning arguments; bash makes words of what is around an `=`.
    """
    given = next((Path(word) for word in _words(context) if Path(word).is_file()), None)
    try:
        return None if given is None else load(given)
    except SpecError:
        return None


def _words(context: click.Context) -> list[str | Path]:
    assigned = (context.params.get("spec"), *(context.params.get("specs") or ()))
    return [*(word for word in assigned if word is not None), *context.args]


def _addresses(node: Node, above: str = "") -> Iterator[str]:
    for key, child in node.value.items():
        address = f"{above}.{key}" if above else key
        yield address
        if child.is_table:
            yield from _addresses(child, address)
        for i, entry in enumerate(child.value if child.is_array else ()):
            if entry.is_table:
                yield from _addresses(entry, f"{address}[{i}]")


def _length(spec: Node | None, table: str) -> int:
    """How many entries an array of tables has; one where nobody knows."""
    node = None if spec is None else spec.at(table)
    return len(node.value) if node is not None and node.is_array else 1


def _files(typed: str, found: Iterable[str]) -> Items:
    """Paths, after the shell's own completion of folders (which in bash starts the list anew)."""
    return [CompletionItem(typed, type="dir"), *(CompletionItem(path) for path in found)]


def _starting(typed: str, offered: Iterable[tuple[str, str]]) -> Items:
    return [CompletionItem(value, help=doc or None) for value, doc in offered if value.startswith(typed)]
