"""A page for each plugin of this repository: its readme, the keys of all it brings, its examples. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from flowfactory.cli.verbs.examples import Example, installed
from flowfactory.components.resolved import contributions
from flowfactory.discovery.entries import KINDS, installed_entries
from flowfactory.discovery.registry import Registry
from tables import inherited, keys_table, page, row

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((\.\./[^)\s]+)\)")
PREFIX = "flowfactory-plugin-"


def path(distribution: str) -> str:
    """Its page, from the folder of the documentation."""
    return f"plugin/{distribution.removeprefix(PREFIX)}.md"


def pages() -> Mapping[str, str]:
    """Every page by its file name."""
    examples = list(installed())
    readmes = sorted((ROOT / "plugins").glob("*/README.md"))
    return {path(readme.parent.name): page(list(_lines(readme, examples))) for readme in readmes}


def _lines(readme: Path, examples: list[Example]) -> Iterator[str]:
    yield LINK.sub(lambda found: f"]({_from_here(found[1])})", readme.read_text(encoding="utf-8")).strip()
    distribution = PREFIX + readme.parent.name
    registry = Registry([entry for entry in installed_entries() if entry.source.name == distribution])
    for kind, offers in contributions(registry)[0].items():
        for offer in offers:
            yield from ("", f"## Keys of {KINDS[kind].name} `{offer.provides.name}`", "", offer.provides.summary, "")
            yield from keys_table(offer.provides.spec, leave=inherited(offer.provides.spec))
    own = [example for example in examples if readme.parent in example.file.resolve().parents]
    if own:
        yield from ("", "## Examples", "", "| spec | base model | trainer | rewards |", "|---|---|---|---|")
        for example in own:
            yield row(f"`{example.address}`", _code(example.base), _code(example.trainer), _code(*example.rewards))


def _code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names if name)


def _from_here(link: str) -> str:
    """A relative link of a readme, from its plugin's page."""
    there = {"../../README.md": "../index.md"}.get(link, link)
    there = re.sub(r"^\.\./\.\./docs/", "../", there)
    return re.sub(r"^\.\./([\w-]+)/README\.md", r"\1.md", there)
