"""What can be wrong with a spec or a plugin, where, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import attrs

FAILED = 1
BAD_SPEC = 2
BAD_PLUGIN = 3


@attrs.frozen
class Place:
    """Where something was written.

    file: the spec; `None` for the command line.
    line: from 1; 0 means the file as a whole. text: that line.
    column, end: the part of the line that is meant, from 0, end excluded.
    """

    file: Path | None
    line: int = 0
    column: int = 0
    end: int = 0
    text: str = ""

    @property
    def folder(self) -> Path:
        """What relative paths written here are relative to."""
        return Path.cwd() if self.file is None else self.file.resolve().parent

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        return f"{shown(self.file)}:{self.line}" if self.line else shown(self.file)

    def excerpt(self) -> str:
        """The source line with a caret under what is meant; empty when no line is."""
        if not self.text:
            return ""
        gutter = f"{self.line or ''} |".rjust(8)
        indent = "".join("\t" if character == "\t" else " " for character in self.text[: self.column])
        carets = "^" * max(1, self.end - self.column)
        return f"{gutter} {self.text}\n{'|'.rjust(8)} {indent}{carets}"


@attrs.frozen
class Problem:
    """One thing that is wrong.

    kind: a slug; each kind has a golden text in the tests.
    what: who is wrong, what was expected. hint: what to do next. code: the exit code it leads to.
    """

    kind: str
    what: str
    place: Place | None = None
    hint: str = ""
    code: int = BAD_SPEC

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place is not None else ""
        sentence = f"{where}{self.what}" + (f"; {self.hint}" if self.hint else "")
        excerpt = self.place.excerpt() if self.place is not None else ""
        return f"{sentence}\n{excerpt}" if excerpt else sentence

    def as_json(self) -> dict[str, object]:
        """For editors and scripts."""
        place = self.place or Place(None)
        file = None if place.file is None else str(place.file)
        position = {"file": file, "line": place.line, "column": place.column, "end": place.end}
        return {"kind": self.kind, "what": self.what, "hint": self.hint, "code": self.code, **position}


class SpecError(Exception):
    """A spec that cannot run, with every problem found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: Sequence[Problem] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    @property
    def code(self) -> int:
        """The exit code: a plugin problem first, for it may hide or cause others."""
        return max(problem.code for problem in self.problems)


class RunError(Exception):
    """A run cannot go on; the message tells a person why, so no traceback is shown.

    code: what to exit with. repeats: whether going on from the last checkpoint would end in the same way.
    """

    code: int = FAILED
    repeats: bool = False


class PluginError(Exception):
    """A plugin that is missing, conflicting, broken or too old or new for what is installed."""

    def __init__(self, kind: str, what: str, hint: str = "") -> None:
        self.kind, self.what, self.hint = kind, what, hint
        super().__init__(str(self.problem(None)))

    def problem(self, place: Place | None) -> Problem:
        """The same, located where the plugin was asked for."""
        return Problem(self.kind, self.what, place, self.hint, BAD_PLUGIN)


def shown(file: Path) -> str:
    """A path as messages show it: relative when it lies under the current folder."""
    path, here = os.path.abspath(file), os.getcwd()
    return os.path.relpath(path, here) if path.startswith(here + os.sep) else path


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`did you mean `x`?`, or nothing when no known word is near."""
    near = get_close_matches(wrong, sorted(known), n=1, cutoff=0.65)
    return f"did you mean `{near[0]}`?" if near else ""


def listed(words: Iterable[str]) -> str:
    """Words in backquotes, separated by commas; `none` when there are none."""
    return ", ".join(f"`{word}`" for word in words) or "none"


def harmless(text: str, most: int = 1000) -> str:
    """Text of unknown origin as messages show it: nothing in it moves a terminal's cursor, and it has an end."""
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in cut)
