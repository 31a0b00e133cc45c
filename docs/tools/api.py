"""The pages of the public names, one for each group of `flowfactory/__init__.pyi`. Their words are the docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

STUB = Path(__file__).parents[2] / "core" / "src" / "flowfactory" / "__init__.pyi"


@attrs.frozen
class Group:
    """Names that belong together, and what they have in common."""

    title: str
    words: str
    names: Sequence[str]

    @property
    def page(self) -> str:
        """Its page, from the folder of the documentation."""
        return f"api/{re.sub('[^a-z]+', '-', self.title.lower())}.md"


def groups() -> list[Group]:
    """A comment begins a group, and says what it is."""
    text = STUB.read_text(encoding="utf-8")
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    heads = [(line, words) for line, words in enumerate(text.splitlines(), 1) if words.startswith("# ")]
    found = []
    for (begin, head), (end, _) in zip(heads, [*heads[1:], (len(text), "")], strict=True):
        title, _, words = head.removeprefix("# ").partition(": ")
        own = [alias.name for node in imports if begin < node.lineno < end for alias in node.names]
        found.append(Group(title, words, own))
    return found


def pages() -> Mapping[str, str]:
    """Every page by its file name."""
    return {group.page: _page(group) for group in groups()}


def _page(group: Group) -> str:
    introduction = f"{group.words[0].upper()}{group.words[1:]} `from flowfactory import …` has these names."
    return "\n\n".join([f"# {group.title}", introduction, *(f"::: flowfactory.{name}" for name in group.names)])
