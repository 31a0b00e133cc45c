"""What the pages of reference are made of: tables of keys, and pages. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Container, Sequence

from flowfactory.cli.describe import describe
from flowfactory.contracts.specs import AdapterSpec, StochasticSpec, TrainerSpec


def inherited(cls: type) -> set[str]:
    """The keys that every plugin of its kind has."""
    bases = (AdapterSpec, StochasticSpec, TrainerSpec)
    return {row.name for base in bases if issubclass(cls, base) for row in describe(base)}


def keys_table(cls: type, leave: Container[str] = (), optional: Container[str] = ()) -> list[str]:
    """The keys of a spec class; `leave`: those told of elsewhere; `optional`: those whose default is not said."""
    rows = [row for row in describe(cls) if row.name not in leave]
    if not rows:
        return ["No keys of its own.", ""]
    head = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return [
        *head,
        *(row(f"`{r.name}`", _code(r.type), "" if r.name in optional else _default(r.default), r.doc) for r in rows),
        "",
    ]


def _default(text: str) -> str:
    return "*required*" if text == "required" else _code(text)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def about(cls: type, heading: str) -> list[str]:
    """A class's docstring, less the heading it begins with."""
    text = inspect.cleandoc(cls.__doc__ or "").removeprefix(heading).removeprefix(":").strip()
    return [text[:1].upper() + text[1:], ""] if text else []


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def page(lines: Sequence[str]) -> str:
    """A page, whose first line says where it comes from."""
    text = "\n".join(lines).strip()
    note = "<!-- Written by `python docs/tools/reference.py` from the source; change it there. -->"
    return f"{note}\n\n{text}\n"
