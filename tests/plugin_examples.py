"""The examples of a plugin, for the tests that lie beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec


def examples_of(test: str) -> list[Path]:
    """The example specs of the plugin that a test's file belongs to."""
    return sorted((Path(test).parents[1] / "examples").glob("*.toml"))


def example_of(examples: Sequence[Path], name: str) -> Spec:
    """The example of a name, checked."""
    (path,) = (path for path in examples if path.stem == name)
    return load_spec(path, Registry(installed_entries()))
