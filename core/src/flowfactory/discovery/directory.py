"""The plugin directory: which distribution brings a name that is not installed. Imports no torch."""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence

import attrs

FILE = "directory.toml"


@attrs.frozen
class Listing:
    """One plugin one can install. names: its public names by kind, `adapters`, `trainers`, …"""

    distribution: str
    summary: str
    names: Mapping[str, Sequence[str]]


@functools.cache
def listings() -> tuple[Listing, ...]:
    """Every plugin of the directory, in its order."""
    text = (importlib.resources.files("flowfactory.discovery") / FILE).read_text(encoding="utf-8")
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
