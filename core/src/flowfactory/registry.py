"""Finds, loads and checks plugins, in three levels.

Metadata (no plugin code runs), hook module (spec classes and hooks, no torch), target (the implementation).
A plugin is imported only when a spec uses one of its names or lists it in `plugins`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flowfactory import hooks
from flowfactory.hooks import PROJECT, Provides
from flowfactory.problems import PluginError, did_you_mean, listed, shown
from flowfactory.spec import AdapterSpec, RewardEntry, SchedulerSpec, TrainerSpec

log = logging.getLogger("flowfactory")


@attrs.frozen
class Kind:
    """One kind of thing a plugin can contribute.

    plural: as in the group `flowfactory.adapters` and the hook `flowfactory_adapters`. key: how a spec names one.
    base: what its spec class extends. contracts: what its target is.
    reserved: keys of its table that are core's.
    """

    name: str
    plural: str
    key: str
    base: type
    contracts: tuple[str, ...]
    reserved: frozenset[str] = frozenset({"name"})

    @property
    def group(self) -> str:
        """The entry-point group."""
        return f"{PROJECT}.{self.plural}"

    @property
    def hook(self) -> str:
        """The contribution hook."""
        return f"{PROJECT}_{self.plural}"


KINDS: Mapping[str, Kind] = {
    kind.plural: kind
    for kind in (
        Kind("adapter", "adapters", "[model] name", AdapterSpec, ("flowfactory.adapter:Adapter",)),
        Kind("scheduler", "schedulers", "[scheduler] name", SchedulerSpec, ("flowfactory.scheduler:Scheduler",)),
        Kind("trainer", "trainers", "[trainer] name", TrainerSpec, ("flowfactory.trainer:Trainer",)),
        Kind(
            "reward", "rewards", "[[reward]] name", object, ("flowfactory.reward:Reward",),
            frozenset(field.name for field in attrs.fields(RewardEntry)) - {"spec"},
        ),
    )
}  # fmt: skip
OBSERVERS = "plugins"
_GROUPS = {f"{PROJECT}.{plural}": plural for plural in (*KINDS, OBSERVERS)}


@attrs.frozen
class Source:
    """Who contributes: an installed distribution, or a local file with its content's hash as the version."""

    name: str
    version: str

    def answers_to(self, wanted: str) -> bool:
        """Whether `wanted` in `name@wanted` means this source."""
        return canonicalize_name(self.name) == canonicalize_name(wanted)

    def __str__(self) -> str:
        return self.name if self.version.startswith("sha256:") else f"{self.name} {self.version}"


@attrs.frozen
class Entry:
    """An entry point, as metadata has it. `kind` is plural: `adapters`, …, or `plugins` for observers."""

    kind: str
    name: str
    module: str
    source: Source
    requires: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For messages: trainer `grpo` (flowfactory-plugin-grpo 0.1.0)."""
        return f"{noun(self.kind)} `{self.name}` ({self.source})"


@attrs.frozen
class Contribution:
    """One named thing whose hook module is loaded."""

    kind: str
    provides: Provides
    source: Source

    @property
    def title(self) -> str:
        """For messages: trainer `grpo` (flowfactory-plugin-grpo 0.1.0)."""
        return f"{noun(self.kind)} `{self.provides.name}` ({self.source})"


def noun(kind: str) -> str:
    """What one of a kind is called."""
    return KINDS[kind].name if kind in KINDS else "observer"


def installed_entries() -> Sequence[Entry]:
    """Every entry point of every installed plugin. No plugin code runs."""
    entries = []
    everything, origin = importlib.metadata.entry_points(), functools.cache(_origin)
    for group, kind in _GROUPS.items():
        for point in everything.select(group=group):
            assert point.dist is not None, "entry points of the environment know their distribution"
            entries.append(Entry(kind, point.name, point.value, *origin(point.dist)))
    return sorted(entries, key=lambda entry: (entry.kind, entry.name, entry.source.name))


def _origin(distribution: importlib.metadata.Distribution) -> tuple[Source, tuple[str, ...]]:
    """A distribution's name, version and requirements; each reading of its metadata takes a millisecond."""
    metadata = distribution.metadata
    return Source(metadata["Name"], metadata["Version"]), tuple(metadata.get_all("Requires-Dist") or ())


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
        self.events = Events(self)

    # --- metadata

    def entries(self, kind: str | None = None) -> Sequence[Entry]:
        """Installed entry points, and those of local files loaded so far."""
        return [entry for entry in self._entries if kind is None or entry.kind == kind]

    def names(self, kind: str) -> Sequence[str]:
        """Public names of one kind."""
        return sorted({entry.name for entry in self.entries(kind)})

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
        if not path.is_file():
            raise PluginError("plugin-file-missing", f"there is no file {shown(path)}")
        source = Source(path.name, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        name = f"flowfactory_local_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if name in self._modules:
            return
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise _broken(f"plugin file {shown(path)}", f"running it failed: {_cause(error)}") from error
        provided = self._register(module, source, f"plugin file {shown(path)}")
        self._loaded[name, source] = provided
        self._entries += [Entry(kind, public, name, source) for kind, public in provided]

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
        near, install = did_you_mean(name, self.names(kind)), f"try: pip install flowfactory-plugin-{name}"
        hint = f"{near} Otherwise {install}" if near else install
        known = listed(self.names(kind))
        return PluginError("plugin-missing", f"no {noun(kind)} `{name}` is installed (there is: {known})", hint)

    def _load(self, entry: Entry) -> dict[tuple[str, str], Contribution]:
        if (entry.module, entry.source) in self._loaded:
            return self._loaded[entry.module, entry.source]
        who = entry.title
        _check_requirements(entry, who)
        try:
            module = importlib.import_module(entry.module)
        except (Exception, SystemExit) as error:
            raise _broken(who, f"importing `{entry.module}` failed: {_cause(error)}") from error
        provided = self._register(module, entry.source, who)
        declared = {(e.kind, e.name) for e in self._entries if (e.module, e.source) == (entry.module, entry.source)}
        _check_names(provided, declared, who)
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
                raise _broken(who, f"a hook does not fit: {' '.join(str(error).split())}") from error
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
                answers = self._manager.subset_hook_caller(kind.hook, others)()
                records = [record for answer in answers for record in answer]
            except Exception as error:
                raise _broken(who, f"its hook `{kind.hook}` failed: {_cause(error)}") from error
            for record in records:
                _check_record(record, kind, who)
                provided[kind.plural, record.name] = Contribution(kind.plural, record, source)
        return provided

    # --- targets

    def target(self, kind: str, wanted: str) -> Callable[..., Any]:
        """Import the implementation of a name.

        Raises:
            PluginError: it cannot be imported, is not there, or is not what its kind requires.
        """
        contribution = self.find(kind, wanted)
        target = _resolve(contribution)
        if inspect.isclass(target):
            contracts = [_attribute(path) for path in KINDS[kind].contracts]
            if not issubclass(target, tuple(contracts)):
                names = listed(path.partition(":")[2] for path in KINDS[kind].contracts)
                raise _broken(contribution.title, f"its target `{target.__name__}` does not extend {names}")
        elif kind != "rewards":
            raise _broken(contribution.title, "its target is not a class")
        return target

    def tracker(self, name: str, run: Any) -> Any:
        """The tracker a loaded plugin has for `name`, or `None`."""
        return self._manager.hook.flowfactory_tracker(name=name, run=run)


class Events:
    """Tells loaded plugins what happens. What one raises is logged with its name and stops nothing."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def run_started(self, *, run: Any, plan: Any) -> None:
        self._tell("flowfactory_run_started", run=run, plan=plan)

    def samples_scored(self, *, run: Any, epoch: int, samples: Any, scores: Any) -> None:
        self._tell("flowfactory_samples_scored", run=run, epoch=epoch, samples=samples, scores=scores)

    def epoch_finished(self, *, run: Any, epoch: int, metrics: Any) -> None:
        self._tell("flowfactory_epoch_finished", run=run, epoch=epoch, metrics=metrics)

    def checkpoint_saved(self, *, run: Any, epoch: int, path: Path) -> None:
        self._tell("flowfactory_checkpoint_saved", run=run, epoch=epoch, path=path)

    def run_finished(self, *, run: Any, outcome: str) -> None:
        self._tell("flowfactory_run_finished", run=run, outcome=outcome)

    def _tell(self, hook: str, **what: Any) -> None:
        manager, sources = self._registry._manager, self._registry._modules
        for name, plugin in manager.list_name_plugin():
            others = [other for other in manager.get_plugins() if other is not plugin]
            try:
                manager.subset_hook_caller(hook, others)(**what)
            except Exception:
                log.exception("plugin %s failed in %s; the run goes on", sources[name], hook)


def _check_requirements(entry: Entry, who: str) -> None:
    """Compare the plugin's own requirements on flowfactory and its plugins with what is installed."""
    for text in entry.requires:
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and canonicalize_name(requirement.name).startswith(PROJECT):
            unmet = unmet_requirement(requirement)
            if unmet:
                raise PluginError("plugin-requirement", f"{who} requires {requirement}, {unmet[0]}", unmet[1])


def unmet_requirement(requirement: Requirement) -> tuple[str, str] | None:
    """What is wrong with a requirement and the command that helps, or `None` when it is met."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "which is not installed", f"try: pip install '{requirement}'"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"but {version} is installed", f"try: pip install --upgrade '{requirement}'"


def _check_names(provided: Iterable[tuple[str, str]], declared: Iterable[tuple[str, str]], who: str) -> None:
    """What the hooks provide must be what the entry points declare."""
    hooked, pointed = set(provided), {(kind, name) for kind, name in declared if kind != OBSERVERS}
    for kind, name in sorted(pointed - hooked):
        names = listed(sorted(n for k, n in hooked if k == kind))
        what = f"{who} declares the entry point `{name}`, but its hook `{KINDS[kind].hook}` provides {names}"
        raise PluginError("plugin-name-mismatch", what)
    for kind, name in sorted(hooked - pointed):
        names = listed(sorted(n for k, n in pointed if k == kind))
        what = f"{who} provides the {noun(kind)} `{name}`, but its entry points in `{KINDS[kind].group}` are {names}"
        raise PluginError("plugin-name-mismatch", what)


def _check_record(record: Any, kind: Kind, who: str) -> None:
    """One yielded record is a sound `Provides`."""
    if not isinstance(record, Provides):
        raise _broken(who, f"its hook `{kind.hook}` yielded {record!r}, which is not a `Provides`")
    if not (inspect.isclass(record.spec) and attrs.has(record.spec) and issubclass(record.spec, kind.base)):
        expected = "an attrs class" if kind.base is object else f"an attrs class that extends `{kind.base.__name__}`"
        raise _broken(who, f"the spec of {kind.name} `{record.name}` is {record.spec!r}, not {expected}")
    try:
        typing.get_type_hints(record.spec)
    except Exception as error:
        raise _broken(
            who, f"the types of {kind.name} `{record.name}`'s spec cannot be read: {_cause(error)}"
        ) from error
    taken = sorted({field.alias or field.name for field in attrs.fields(record.spec)} & kind.reserved)
    if taken:
        raise _broken(
            who, f"the spec of {kind.name} `{record.name}` declares {listed(taken)}, which core's table takes"
        )
    if isinstance(record.target, str) and record.target.count(":") != 1:
        raise _broken(who, f"the target of {kind.name} `{record.name}` is {record.target!r}, not 'module:attribute'")


def _resolve(contribution: Contribution) -> Callable[..., Any]:
    target = contribution.provides.target
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _broken(contribution.title, f"importing `{module_name}` failed: {_cause(error)}") from error
    if attribute not in vars(module):
        hint = did_you_mean(attribute, vars(module))
        what = f"{contribution.title} has the target `{target}`, but that module has no `{attribute}`"
        raise PluginError("plugin-target-missing", what, hint)
    found: Callable[..., Any] = vars(module)[attribute]
    if not callable(found):
        raise _broken(contribution.title, f"its target `{target}` is not a class or function")
    return found


def _attribute(path: str) -> Any:
    module, _, name = path.partition(":")
    return vars(importlib.import_module(module))[name]


def _broken(who: str, cause: str) -> PluginError:
    return PluginError("plugin-broken", f"{who} is broken: {cause}", "report this to its author")


def _cause(error: BaseException) -> str:
    """An exception in one line, and where it was raised."""
    last = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in last if "importlib" not in frame.filename and frame.filename != __file__]
    where = f" ({shown(Path(frames[-1].filename))}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({shown(Path(error.filename))}:{error.lineno})"
    return f"{type(error).__name__}: {error}{where}"


def tracing() -> bool:
    """Whether `FLOWFACTORY_TRACE=1` asks for hook calls to be shown."""
    return os.environ.get("FLOWFACTORY_TRACE", "") not in ("", "0")
