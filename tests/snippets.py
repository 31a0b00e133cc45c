"""Fenced blocks of Markdown pages. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs

FENCE = re.compile(
    r"""
    (?:^<!--\ (?P<mark>not\ run|check):\ (?P<words>.*?)\ -->\n)?
    ^```(?P<language>[a-z]*)(?:\ title="(?P<title>[^"]+)")?\n
    (?P<text>.*?)
    ^```$
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


@attrs.frozen
class Block:
    """A fenced block.

    title: the file it stands for, or "". A comment right above may say why it is not run (`<!-- not run: … -->`) or
    with which options a spec is sound (`<!-- check: --unset full -->`).
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    not_run: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        words = found["words"] or ""
        yield Block(
            page,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["title"] or "",
            found["text"],
            words if found["mark"] == "not run" else "",
            tuple(words.split()) if found["mark"] == "check" else (),
        )
