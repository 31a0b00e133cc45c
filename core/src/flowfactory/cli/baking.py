"""New plugins from the templates that travel with flowfactory. Imports no torch."""

from __future__ import annotations

import builtins
import datetime
import json
import keyword
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment
from jinja2.ext import Extension

from flowfactory.contracts.hooks import PROJECT
from flowfactory.discovery.entries import KINDS, installed_entries
from flowfactory.errors import printable, shortened
from flowfactory.names import directory

TEMPLATES = Path(__file__).parent / "templates"
NAME = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"
"""What a plugin made from a template may be called."""
LONGEST = 60
"""Letters of such a name."""


def questions(kind: str) -> Mapping[str, str]:
    """What a template asks, each with the answer that stands if none is given."""
    asked = json.loads((TEMPLATES / kind / "cookiecutter.json").read_text(encoding="utf-8"))
    return {name: default for name, default in asked.items() if not name.startswith("_")}


class Quoted(Extension):
    """The filter `quoted`: a text as TOML and Python both write it, in double quotes."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def bake(kind: str, name: str, answers: Mapping[str, str], into: Path) -> Path:
    """Write a plugin into a new folder under `into`; returns that folder.

    Args:
        kind: "adapter", "reward", "scheduler" or "trainer". name: its public name.
        answers: to the other questions; they are written as they are.

    Raises:
        ValueError: the name is none or another plugin's, an answer is no text, or the folder exists or cannot be made.
    """
    _refuse(kind, name, answers)
    folder = into / f"flowfactory-plugin-{name}"
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists already")
    from cookiecutter.main import cookiecutter

    context = {question: text.replace("{", "{{ '{' }}") for question, text in answers.items()}  # else it is a template
    context |= {"name": name, "__class": class_name(kind, name), "__year": str(datetime.date.today().year)}
    with TemporaryDirectory() as own:  # what cookiecutter would read and write in the user's home
        config = {"replay_dir": own, "cookiecutters_dir": own}
        try:
            into.mkdir(parents=True, exist_ok=True)
            cookiecutter(
                str(TEMPLATES / kind),
                no_input=True,
                extra_context=context,
                output_dir=str(into),
                default_config=config,
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def _refuse(kind: str, name: str, answers: Mapping[str, str]) -> None:
    if re.fullmatch(NAME, name) is None or len(name) > LONGEST:
        what = f"expected a name of up to {LONGEST} small letters, digits and hyphens, such as my-{kind}"
        raise ValueError(f"{what}, not {shortened(repr(name))}")
    (plural,) = (known.plural for known in KINDS.values() if known.name == kind)
    built_in = {entry.name for entry in installed_entries() if (entry.kind, entry.source.name) == (plural, PROJECT)}
    taken = directory.distribution_of(plural, name) or (PROJECT if name in built_in else None)
    if taken:
        raise ValueError(f"the {kind} `{name}` is {taken}'s; two of one name exclude each other, so choose another")
    if (package := f"{PROJECT}-plugin-{name}") in (listing.distribution for listing in directory.listings()):
        raise ValueError(f"there is a package {package} already, which the directory lists; choose another name")
    for question, answer in answers.items():
        if re.search("[\ud800-\udfff\0]", answer):
            raise ValueError(f"the {question} has characters that are no text: {printable(answer)[:80]!r}")


def class_name(kind: str, name: str) -> str:
    """What the class of a plugin is called: its name, with its kind where the template uses that word otherwise."""
    own = "".join(part.title() for part in name.split("-"))
    words = {word for file in (TEMPLATES / kind).rglob("*.py") for word in re.findall(r"\w+", file.read_text("utf-8"))}
    taken = {*words, *keyword.kwlist, *vars(builtins)}
    return own + kind.title() if {own, f"{own}Spec"} & taken else own
