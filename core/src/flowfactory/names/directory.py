"""The plugin directory: which distribution brings a name that is not installed. Imports no torch."""

from __future__ import annotations

import functools
import importlib.resources
import shlex
import tomllib
from collections.abc import Mapping, Sequence

import attrs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flowfactory.contracts.hooks import PROJECT

FILE = "directory.toml"


@attrs.frozen
class Listing:
    """One plugin one can install. names: its public names by kind: `adapters`, `trainers`, …, `commands`."""

    distribution: str
    summary: str
    names: Mapping[str, Sequence[str]]


@functools.cache
def listings() -> tuple[Listing, ...]:
    """Every plugin of the directory, in its order."""
    text = (importlib.resources.files("flowfactory.names") / FILE).read_text(encoding="utf-8")
    return tuple(
        Listing(name, table["summary"], {kind: names for kind, names in table.items() if kind != "summary"})
        for name, table in tomllib.loads(text).items()
    )


def names(kind: str) -> list[str]:
    """Every public name of a kind."""
    return [name for listing in listings() for name in listing.names.get(kind, ())]


def distribution_of(kind: str, name: str) -> str | None:
    """Who brings a name, if the directory knows."""
    return next((listing.distribution for listing in listings() if name in listing.names.get(kind, ())), None)


def advice(kind: str, name: str) -> str:
    """How to install what brings a name; empty for what the directory does not know."""
    distribution = distribution_of(kind, name)
    return "" if distribution is None else f"try: pip install {distribution}"


def requirement_advice(requirement: Requirement, upgrade: bool) -> str:
    """How to meet a requirement: a command for what the directory lists, none for what anybody could have written."""
    known = {PROJECT, *(canonicalize_name(listing.distribution) for listing in listings())}
    if canonicalize_name(requirement.name) in known and requirement.url is None:
        wanted = shlex.quote(f"{requirement.name}{requirement.specifier}")
        return f"try: pip install {'--upgrade ' if upgrade else ''}{wanted}"
    return "flowfactory's directory does not list it: find out whose it is before you install it"
