"""The plugin directory knows every first-party plugin, and is asked about unknown names."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flowfactory.discovery import directory
from flowfactory.discovery.registry import KINDS, Registry
from flowfactory.errors import PluginError

PLUGINS = sorted((Path(__file__).parents[3] / "plugins").glob("*/pyproject.toml"))


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.parent.name)
def test_first_party_plugins_are_listed(path: Path) -> None:
    project = tomllib.loads(path.read_text())["project"]
    for group, points in project["entry-points"].items():
        kind = group.removeprefix("flowfactory.")
        if kind in KINDS:
            for name in points:
                assert directory.distribution_of(kind, name) == project["name"], f"{kind} {name}"


def test_a_listing_is_sound() -> None:
    for listing in directory.listings():
        assert listing.names.keys() <= KINDS.keys()
        assert listing.summary.endswith(".")
    for kind in KINDS:
        assert len(directory.names(kind)) == len(set(directory.names(kind)))


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("trainers", "grpo-guard", "(there is: none); try: pip install flowfactory-plugin-grpo"),
        (
            "trainers",
            "gpro-guard",
            "did you mean `grpo-guard`? Otherwise try: pip install flowfactory-plugin-gpro-guard",
        ),
        ("rewards", "zebra", "try: pip install flowfactory-plugin-zebra"),
    ],
)
def test_an_unknown_name_says_what_to_install(kind: str, name: str, hint: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry([]).find(kind, name)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("grpo-guard", "no plugin `grpo-guard` is installed; try: pip install flowfactory-plugin-grpo"),
        ("gpro-guard", "did you mean `grpo-guard`? Otherwise try: pip install flowfactory-plugin-gpro-guard"),
    ],
)
def test_so_does_a_name_of_no_kind_in_particular(name: str, hint: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry([]).named(name)
    assert hint in str(caught.value)
