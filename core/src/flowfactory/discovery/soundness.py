"""What a plugin must be to be used, and how it is refused: with its distribution, its version and the cause."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from flowfactory.calling import calling
from flowfactory.contracts.hooks import PROJECT, Provides
from flowfactory.discovery.entries import KINDS, OBSERVERS, Contribution, Entry, Kind, noun
from flowfactory.errors import PluginError, cause, did_you_mean, listed
from flowfactory.names import directory


def check_requirements(entry: Entry, who: str) -> None:
    """Compare the plugin's own requirements on flowfactory and its plugins with what is installed."""
    for requirement, what, hint in unmet_requirements(entry):
        raise PluginError("plugin-requirement", f"{who} requires {requirement}, {what}", hint)


def unmet_requirements(entry: Entry) -> Iterator[tuple[Requirement, str, str]]:
    """The requirements on flowfactory and its plugins that are not met, what is wrong, and the command that helps."""
    for requirement in map(Requirement, entry.requires):
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and canonicalize_name(requirement.name).startswith(PROJECT):
            unmet = unmet_requirement(requirement)
            if unmet:
                yield requirement, *unmet


def unmet_requirement(requirement: Requirement) -> tuple[str, str] | None:
    """What is wrong with a requirement and the command that helps, or `None` when it is met."""
    try:
        version = importlib.metadata.version(requirement.name) or "a version nobody knows"
        if requirement.specifier.contains(version, prereleases=True):
            return None
    except importlib.metadata.PackageNotFoundError:
        return "which is not installed", directory.requirement_advice(requirement, upgrade=False)
    except InvalidVersion:
        version = "an unreadable version"
    return f"but {version} is installed", directory.requirement_advice(requirement, upgrade=True)


def check_names(provided: Iterable[tuple[str, str]], declared: Iterable[tuple[str, str]], who: str) -> None:
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


def check_record(record: Any, kind: Kind, who: str) -> None:
    """One yielded record is a sound `Provides`."""
    if not isinstance(record, Provides):
        raise broken(who, f"its hook `{kind.hook}` yielded {record!r}, which is not a `Provides`")
    if not (inspect.isclass(record.spec) and attrs.has(record.spec) and issubclass(record.spec, kind.base)):
        expected = "an attrs class" if kind.base is object else f"an attrs class that extends `{kind.base.__name__}`"
        raise broken(who, f"the spec of {kind.name} `{record.name}` is {record.spec!r}, not {expected}")
    try:
        typing.get_type_hints(record.spec)
    except Exception as error:
        raise broken(who, f"the types of {kind.name} `{record.name}`'s spec cannot be read: {cause(error)}") from error
    declared = {(field.alias or field.name).removesuffix("_") for field in attrs.fields(record.spec)}
    taken = sorted(declared & kind.reserved)
    if taken:
        raise broken(who, f"the spec of {kind.name} `{record.name}` declares {listed(taken)}, which core's table takes")
    if isinstance(record.target, str) and record.target.count(":") != 1:
        raise broken(who, f"the target of {kind.name} `{record.name}` is {record.target!r}, not 'module:attribute'")


def resolve(contribution: Contribution) -> Callable[..., Any]:
    """The target of a contribution, imported and held to its contract.

    Raises:
        PluginError: it cannot be imported, or is not what it is registered as.
    """
    target = contribution.provides.target
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    try:
        with calling(contribution.title, environment=False, alone=True):
            module = importlib.import_module(module_name)
    except Exception as error:
        raise broken(contribution.title, f"importing `{module_name}` failed: {cause(error)}") from error
    if attribute not in vars(module):
        hint = did_you_mean(attribute, vars(module))
        what = f"{contribution.title} has the target `{target}`, but that module has no `{attribute}`"
        raise PluginError("plugin-target-missing", what, hint)
    found: Callable[..., Any] = vars(module)[attribute]
    if not callable(found):
        raise broken(contribution.title, f"its target `{target}` is not a class or function")
    return found


def attribute(path: str) -> Any:
    """What `"module:name"` names."""
    module, _, name = path.partition(":")
    return vars(importlib.import_module(module))[name]


def broken(who: str, cause: str, hint: str = "report this to its author") -> PluginError:
    """The error of a plugin that is at fault itself."""
    return PluginError("plugin-broken", f"{who} is broken: {cause}", hint)
