"""New plugins from the templates that travel with flowfactory. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
NAME = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"
"""What a plugin made from a template may be called."""


def questions(kind: str) -> Mapping[str, str]:
    """What a template asks, each with the answer that stands if none is given."""
    asked = json.loads((TEMPLATES / kind / "cookiecutter.json").read_text(encoding="utf-8"))
    return {name: default for name, default in asked.items() if not name.startswith("_")}


def bake(kind: str, name: str, answers: Mapping[str, str], into: Path) -> Path:
    """Write a plugin into a new folder under `into`; returns that folder.

    Args:
        kind: "adapter", "reward", "scheduler" or "trainer". name: its public name.
        answers: to the other questions.

    Raises:
        ValueError: the name is none, or the folder exists.
    """
    if re.fullmatch(NAME, name) is None:
        raise ValueError(f"expected a name in small letters, digits and hyphens, such as my-{kind}, not {name!r}")
    folder = into / f"flowfactory-plugin-{name}"
    if folder.exists():
        raise ValueError(f"{folder} exists already")
    from cookiecutter.main import cookiecutter

    context = {**answers, "name": name}
    cookiecutter(str(TEMPLATES / kind), no_input=True, extra_context=context, output_dir=str(into))
    return folder
