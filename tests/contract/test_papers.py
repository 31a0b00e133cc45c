"""`docs/papers.md` leaves out no sampler, window rule, trainer or published setting."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from flowfactory.contracts.specs import Window
from flowfactory.discovery.registry import Registry, installed_entries

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "papers.md").read_text()
PLUGINS = (
    "grpo",
    "nft",
    "awm",
    "dppo",
    "dgpo",
    "crd",
    "dmd",
    "dpo",
    "refl",
    "sft",
    "opd",
    "stepgrpo",
    "tempflow",
    "branchgrpo",
)


def names(kind: str) -> list[str]:
    """The names of a kind that core and the trainers' plugins provide."""
    ours = {"flowfactory", *(f"flowfactory-plugin-{plugin}" for plugin in PLUGINS)}
    registry = Registry([entry for entry in installed_entries() if entry.source.name in ours])
    return sorted(registry.names(kind))


@pytest.mark.parametrize("kind", ["schedulers", "trainers"])
def test_every_name_is_there(kind: str) -> None:
    assert names(kind)
    assert [name for name in names(kind) if f"`{name}`" not in TEXT] == []


def test_every_window_rule_is_there() -> None:
    rules = set(get_args(get_type_hints(Window)["rule"]))
    assert {rule for rule in rules if f"| `{rule}` |" not in TEXT} == {"list"}


def test_every_example_is_there_and_every_mention_exists() -> None:
    files = [path.stem for plugin in PLUGINS for path in (ROOT / "plugins" / plugin / "examples").glob("*.toml")]
    patterns = re.findall(r"`([a-z-]+-\*)`", TEXT)
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(file, pattern) for file in files)] == []
