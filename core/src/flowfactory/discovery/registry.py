"""Finds, loads and checks plugins, in three levels.

Metadata (no plugin code runs), hook module (spec classes and hooks, no torch), target (the implementation).
A plugin is imported only when a spec uses one of its names or lists it in `plugins`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from flowfactory.calling import calling
from flowfactory.contracts import hooks
from flowfactory.contracts.hooks import PROJECT
from flowfactory.discovery.entries import KINDS, OBSERVERS, Contribution, Entry, Source, installed_entries, noun
from flowfactory.discovery.local import module_name, run_file
from flowfactory.discovery.soundness import (
    attribute,
    broken,
    check_names,
    check_record,
    check_requirements,
    resolve,
    unmet_requirements,
)
from flowfactory.errors import Ending, PluginError, SpecError, cause, did_you_mean, listed, shortened, shown
from flowfactory.names import aliases, directory

LIST = "see: flowfactory plugins list"


class Registry:
    """What is installed, and what one spec has loaded of it.

    Args:
        entries: the installed entry points; read once, as they are now, when absent.
        trace: receives a line for every hook call.
    """

    def __init__(self, entries: Sequence[Entry] | None = None, trace: Callable[[str], object] | None = None) -> None:
        self._entries = list(installed_entries() if entries is None else entries)
        self._loaded: dict[tuple[str, Source], dict[tuple[str, str], Contribution]] = {}
        self._modules: dict[str, Source] = {}
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hooks)
        if trace is not None:
            self._manager.trace.root.setwriter(trace)
            self._manager.enable_tracing()

    # --- metadata

    def entries(self, kind: str | None = None) -> Sequence[Entry]:
        """Installed entry points, and those of local files loaded so far."""
        return [entry for entry in self._entries if kind is None or entry.kind == kind]

    def names(self, kind: str) -> Sequence[str]:
        """Public names of one kind."""
        return sorted({entry.name for entry in self.entries(kind)})

    def troubles(self, entry: Entry) -> list[str]:
        """What keeps a name from being used as it is: another distribution that has it too, requirements not met."""
        others = [other.source for other in self.entries(entry.kind) if other.name == entry.name]
        conflicts = [f"also provided by {other}" for other in others if other != entry.source]
        damage = [entry.damage] if entry.damage else []
        return (
            damage
            + conflicts
            + [f"requires {requirement}, {what}" for requirement, what, _ in unmet_requirements(entry)]
        )

    def versions(self) -> Mapping[str, str]:
        """Core's version and those of every plugin loaded so far; a hash for local files."""
        loaded = {source.name: source.version for source in self._modules.values()}
        return {PROJECT: importlib.metadata.version(PROJECT), **dict(sorted(loaded.items()))}

    # --- hook modules

    def find(self, kind: str, wanted: str) -> Contribution:
        """Load what `name` or `name@distribution` stands for.

        Raises:
            PluginError: it is missing, ambiguous, broken, or made for another version.
        """
        entry = self._choose(kind, KINDS[kind].key, wanted)
        return self._load(entry)[kind, entry.name]

    def observe(self, wanted: str) -> None:
        """Load a plugin named in `plugins`: an observer, or else whatever goes by that name.

        Raises:
            PluginError: as `find`.
        """
        name = wanted.partition("@")[0]
        kinds = [OBSERVERS, *KINDS] if any(entry.name == name for entry in self.entries(OBSERVERS)) else list(KINDS)
        found = [kind for kind in kinds if any(entry.name == name for entry in self.entries(kind))]
        self._load(self._choose(found[0] if found else OBSERVERS, "plugins", wanted))

    def load_file(self, path: Path) -> None:
        """Load a local file as a hook module; its names are then as good as installed ones.

        Raises:
            PluginError: it is missing or broken.
        """
        name, who = module_name(path), f"plugin file {shown(path)}"
        if name in self._modules:
            return
        module, source = run_file(path, who)
        provided = self._register(module, source, who)
        self._loaded[name, source] = provided
        self._entries += [Entry(kind, public, name, source) for kind, public in provided]

    def named(self, wanted: str) -> list[Entry]:
        """What goes by `name` or `name@distribution`, of whatever kind; of a distribution, all it provides.

        Raises:
            PluginError: nothing does.
        """
        name, _, chosen = wanted.partition("@")
        same_name = [entry for entry in self._entries if entry.name == name]
        found = [entry for entry in same_name if not chosen or entry.source.answers_to(chosen)]
        found = found or [entry for entry in self._entries if entry.source.answers_to(wanted)]
        if not found:
            hint = LIST if same_name else self._what_is_meant(KINDS, name)
            raise PluginError("plugin-missing", f"no plugin `{shortened(wanted)}` is installed", hint)
        return found

    def loaded(self, kind: str) -> Sequence[Contribution]:
        """Everything of one kind whose hook module is loaded."""
        return [c for provided in self._loaded.values() for c in provided.values() if c.kind == kind]

    def _choose(self, kind: str, key: str, wanted: str) -> Entry:
        name, _, chosen = wanted.partition("@")
        same_name = [entry for entry in self.entries(kind) if entry.name == name]
        found = [entry for entry in same_name if not chosen or entry.source.answers_to(chosen)]
        if not found:
            raise self._missing(kind, name, chosen, same_name)
        if len(found) > 1:
            both = " and ".join(str(entry.source) for entry in found)
            hint = "choose one: " + " or ".join(f'{key} = "{name}@{entry.source.name}"' for entry in found)
            raise PluginError("plugin-conflict", f"{noun(kind)} `{name}` is provided by {both}", hint)
        return found[0]

    def _missing(self, kind: str, name: str, chosen: str, same_name: Sequence[Entry]) -> PluginError:
        if same_name:
            sources = ", ".join(str(entry.source) for entry in same_name)
            return PluginError(
                "plugin-not-from", f"{noun(kind)} `{name}` is not provided by `{chosen}`, but by {sources}"
            )
        elsewhere = [entry.kind for entry in self._entries if entry.name == name and entry.kind != kind]
        if elsewhere:
            return PluginError("plugin-other-kind", f"`{name}` is a {noun(elsewhere[0])}, not a {noun(kind)}")
        what = f"no {noun(kind)} `{shortened(name)}` is installed (there is: {listed(self.names(kind))})"
        return PluginError("plugin-missing", what, self._what_is_meant((kind,), name))

    def _what_is_meant(self, kinds: Iterable[str], name: str) -> str:
        """What to do about a name that is not installed. What is to be installed is named only from the directory."""
        if own := [e.name for e in self._entries if e.kind in kinds and e.source.name == name]:
            return f"that is a distribution, which provides {listed(own)}"
        for kind in kinds:
            if install := directory.advice(kind, name):
                return install
        for kind in kinds:
            if (alias := aliases.plugin(kind, name)) is not None:
                absent = "" if alias.here in self.names(kind) else directory.advice(kind, alias.here)
                return "; ".join(part for part in (alias.hint(), absent) if part)
        known = [known for kind in kinds for known in (*self.names(kind), *directory.names(kind))]
        return did_you_mean(aliases.stem(name), known) or f"no plugin of that name is known; {LIST}"

    def _load(self, entry: Entry) -> dict[tuple[str, str], Contribution]:
        if (entry.module, entry.source) in self._loaded:
            return self._loaded[entry.module, entry.source]
        who = entry.title
        if entry.damage:
            raise PluginError("plugin-broken", f"{who} is broken: {entry.damage}", "install it anew")
        check_requirements(entry, who)
        try:
            with calling(who, environment=False):
                module = importlib.import_module(entry.module)
        except Exception as error:
            raise broken(who, f"importing `{entry.module}` failed: {cause(error)}") from error
        provided = self._register(module, entry.source, who)
        declared = {(e.kind, e.name) for e in self._entries if (e.module, e.source) == (entry.module, entry.source)}
        try:
            check_names(provided, declared, who)
        except PluginError:
            self._manager.unregister(module)
            del self._modules[module.__name__]
            raise
        self._loaded[entry.module, entry.source] = provided
        return provided

    def _register(self, module: ModuleType, source: Source, who: str) -> dict[tuple[str, str], Contribution]:
        """Register with pluggy and read the contributions, or leave no trace."""
        try:
            self._manager.register(module, module.__name__)
            self._check_pending(module, who)
            provided = self._contributions(module, source, who)
        except BaseException as error:
            if self._manager.is_registered(module):
                self._manager.unregister(module)
            if isinstance(error, pluggy.PluginValidationError):
                raise broken(who, f"a hook does not fit: {' '.join(str(error).split())}") from error
            raise
        self._modules[module.__name__] = source
        return provided

    def _check_pending(self, module: ModuleType, who: str) -> None:
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError:
            known = {name for name in vars(hooks) if name.startswith(f"{PROJECT}_")}
            wrong = sorted(name for name in vars(module) if self._manager.parse_hookimpl_opts(module, name))
            wrong = [name for name in wrong if name not in known]
            hint = did_you_mean(wrong[0], known) or f"hooks are: {listed(sorted(known))}"
            raise PluginError("plugin-unknown-hook", f"{who} implements an unknown hook `{wrong[0]}`", hint) from None

    def _contributions(self, module: ModuleType, source: Source, who: str) -> dict[tuple[str, str], Contribution]:
        provided: dict[tuple[str, str], Contribution] = {}
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
        for kind in KINDS.values():
            try:
                with calling(who, environment=False):
                    answers = self._manager.subset_hook_caller(kind.hook, others)()
                    records = [record for answer in answers for record in answer]
            except Exception as error:
                raise broken(who, f"its hook `{kind.hook}` failed: {cause(error)}") from error
            for record in records:
                check_record(record, kind, who)
                provided[kind.plural, record.name] = Contribution(kind.plural, record, source)
        return provided

    # --- targets

    def target(self, kind: str, wanted: str) -> Callable[..., Any]:
        """Import the implementation of a name.

        Raises:
            PluginError: it cannot be imported, is not there, or is not what its kind requires.
        """
        contribution = self.find(kind, wanted)
        target = resolve(contribution)
        if inspect.isclass(target):
            contracts = [attribute(path) for path in KINDS[kind].contracts]
            if not issubclass(target, tuple(contracts)):
                names = listed(path.partition(":")[2] for path in KINDS[kind].contracts)
                raise broken(contribution.title, f"its target `{target.__name__}` does not extend {names}")
        elif kind != "rewards":
            raise broken(contribution.title, "its target is not a class")
        return target

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """While active, what a loaded plugin's code raises is told of that plugin.

        Raises:
            PluginError: naming it.
        """
        try:
            yield
        except (PluginError, SpecError, Ending):
            raise
        except BaseException as error:
            frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
            packages = {name.partition(".")[0]: source for name, source in self._modules.items()}
            packages.pop(PROJECT, None)
            at_fault = [packages[name.partition(".")[0]] for name in frames if name.partition(".")[0] in packages]
            if not at_fault:
                raise
            raise broken(f"plugin {at_fault[-1]}", cause(error)) from error

    def brings_trackers(self) -> bool:
        """Whether a loaded plugin has trackers."""
        return bool(self._manager.hook.flowfactory_tracker.get_hookimpls())

    def observers(self) -> tuple[pluggy.PluginManager, Mapping[str, Source]]:
        """Where loaded plugins are registered, and who contributes each module, by its name."""
        return self._manager, self._modules
