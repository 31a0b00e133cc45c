"""What can be wrong with a spec or a plugin, where, and what to do about it."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import attrs

DONE = 0
FAILED = 1
BAD_SPEC = 2
BAD_PLUGIN = 3
TERMINATED = 75
INTERRUPTED = 130

CORE = Path(__file__).parent


WIDTH = 120
"""How much of a line an excerpt shows."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""What a terminal obeys instead of showing it, and what no text has; but for tabs and the ends of lines."""


def printable(text: str) -> str:
    """The text with an escape such as `\\x1b` for every character that would not be shown."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def shortened(text: str, most: int = 200) -> str:
    """The text, or its beginning where it is longer than a message should be."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


RunErrorT = TypeVar("RunErrorT", bound="RunError")


@attrs.frozen
class Place:
    """Where something was written.

    file: the spec; `None` for the command line.
    line: from 1; 0 means the file as a whole, or the command line.
    column, end: the part of the line that is meant, from 0, end excluded.
    lines: all lines of the file, shared by its places.
    """

    file: Path | None
    line: int = 0
    column: int = 0
    end: int = 0
    lines: Sequence[str] = attrs.field(default=(), eq=False, repr=False)

    @property
    def text(self) -> str:
        """The line that is meant; empty when none is."""
        return self.lines[max(self.line - 1, 0)] if self.lines and (self.line or self.file is None) else ""

    @property
    def folder(self) -> Path:
        """What relative paths written here are relative to: the folder of the file as it was named."""
        return Path.cwd() if self.file is None else self.file.parent.resolve()

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        return f"{shown(self.file)}:{self.line}" if self.line else shown(self.file)

    def excerpt(self) -> str:
        """The source line, or the part of a long one, with a caret under what is meant; empty when no line is."""
        if not self.text:
            return ""
        start = max(0, min(self.column - WIDTH // 4, len(self.text) - WIDTH))
        end = min(start + WIDTH, len(self.text))
        before, meant = self.text[start : self.column], self.text[self.column : min(self.end, end)]
        left, right = "… " if start else "", " …" if end < len(self.text) else ""
        gutter = f"{self.line or ''} |".rjust(8)
        indent = " " * len(left) + re.sub("[^\t]", " ", printable(before))
        shown_text = printable(self.text[start:end])
        return f"{gutter} {left}{shown_text}{right}\n{'|'.rjust(8)} {indent}{'^' * max(1, len(printable(meant)))}"


@attrs.frozen
class Problem:
    """One thing that is wrong.

    kind: a slug; each kind has a golden text in the tests.
    what: who is wrong, what was expected. hint: what to do next.
    code: the exit code it leads to; 0 is a note, which keeps nothing from running.
    """

    kind: str
    what: str
    place: Place | None = None
    hint: str = ""
    code: int = BAD_SPEC

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place is not None else ""
        note = "" if self.code else "note: "
        sentence = f"{where}{note}{self.what}" + (f"; {self.hint}" if self.hint else "")
        excerpt = self.place.excerpt() if self.place is not None else ""
        return printable(f"{sentence}\n{excerpt}" if excerpt else sentence)

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

    code: the exit code. repeats: whether a run resumed from the last checkpoint would end in the same way.
    everywhere: whether every process of the run ends here, so that they can still do something together.
    """

    code: int = FAILED
    repeats: bool = False
    everywhere: bool = False


class Ending(BaseException):
    """A person or a system ends this process; no `Exception`, so that no library takes it for a fault of its own.

    everywhere: as of a `RunError`.
    """

    everywhere: bool = False


def everywhere(error: RunErrorT) -> RunErrorT:
    """The error, which each process of a run raises at the same point."""
    error.everywhere = True
    return error


class Ended(Exception):
    """Other people's code has raised what ends programs, such as `SystemExit`; that is the cause of this."""


def meant(error: BaseException) -> BaseException:
    """What was raised in truth."""
    return error.__cause__ if isinstance(error, Ended) and error.__cause__ is not None else error


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


def typed(file: Path) -> str:
    """A path as a command takes it: quoted for a shell, and never an option; what cannot be shown as bash writes it."""
    path = shown(file)
    path = f"./{path}" if path.startswith("-") else path
    if path == printable(path) and "\n" not in path:
        return shlex.quote(path)
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in "'\\" else f"\\x{b:02x}" for b in os.fsencode(path))
    return f"$'{''.join(plain)}'"


def said(error: BaseException) -> str:
    """An exception in words that can be shown, whatever it holds."""
    error = meant(error)
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be had)"
    return harmless(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def cause(error: BaseException) -> str:
    """An exception in one line, and where it was raised."""
    error = meant(error)
    last = traceback.extract_tb(error.__traceback__)
    frames = [
        frame for frame in last if "importlib" not in frame.filename and not Path(frame.filename).is_relative_to(CORE)
    ]
    where = f" ({shown(Path(frames[-1].filename))}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({shown(Path(error.filename))}:{error.lineno})"
    return f"{said(error)}{where}"


def did_you_mean(wrong: str, known: Iterable[str], cutoff: float = 0.65) -> str:
    """`did you mean `x`?`, or nothing when no known word is near. cutoff: how near, from 0 to 1."""
    words = {word.lower(): word for word in sorted(known, reverse=True)}
    near = get_close_matches(wrong[:100].lower(), sorted(words), n=1, cutoff=cutoff)
    return f"did you mean `{words[near[0]]}`?" if near else ""


def listed(words: Iterable[str]) -> str:
    """Words in backquotes, separated by commas; `none` when there are none."""
    return ", ".join(f"`{word}`" for word in words) or "none"


def harmless(text: str, most: int = 1000) -> str:
    """Text of unknown origin as messages show it: nothing in it moves a terminal's cursor, and it has an end."""
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in cut)
