"""Rewards in an environment of their own, for flowfactory: what the spec may say, and where the reward is.

Imports no torch. A plugin for one scorer extends `ScorerSpec`, says as class attributes what `IsolatedSpec` reads from
the spec, and names `TARGET`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import attrs
from flowfactory import Function, Location, Provides, hookimpl, key
from packaging.requirements import InvalidRequirement, Requirement

TARGET = "flowfactory_plugin_isolated.reward:Isolated"


class Scorer(Protocol):
    """What runs where.

    requirements: what pip would install, or a requirements file. score: the function. python: a version, this one when
    absent. environment: a folder that has everything already, and nothing is built.
    """

    @property
    def requirements(self) -> tuple[str, ...] | str: ...
    @property
    def score(self) -> str: ...
    @property
    def python(self) -> str | None: ...
    @property
    def environment(self) -> str | None: ...


@attrs.frozen(kw_only=True)
class ScorerSpec:
    """Keys of every reward that runs in an environment of its own."""

    start_timeout: float = key(
        "Seconds that the scorer may take to start: its imports, and what it loads or downloads then.",
        default=1800.0,
        gt=0,
        le=86400,
    )
    request_timeout: float = key(
        "Seconds that one call may take; a scorer that takes longer is ended, and started again for the next call.",
        default=300.0,
        gt=0,
        le=86400,
    )
    restarts: int = key(
        "How often in a row the scorer is started again, without a score in between, when it has ended.",
        default=3,
        ge=0,
        le=100,
    )


@attrs.frozen(kw_only=True)
class IsolatedSpec(ScorerSpec):
    """A function that scores, in a process and an environment of its own."""

    score: Function = key("The function: called with images, prompts and rows, it returns a number or None for each.")
    requirements: tuple[str, ...] | Location = key(
        'What it needs, as pip has it, e.g. `["hpsv3==1.0.0"]`; or a requirements file.', default=(), exists=True
    )
    python: str | None = key(
        "Version of Python, e.g. `3.10`: uv fetches it; without uv it must be installed. The run's own when absent.",
        default=None,
        pattern=r"3\.\d+(\.\d+)?",
    )
    environment: Location | None = key(
        "Folder of an environment that has everything already, of venv, uv or conda; nothing is built then.",
        default=None,
        exists=True,
    )

    @requirements.validator
    def _are_requirements(self, attribute: attrs.Attribute[Any], value: tuple[str, ...] | str) -> None:
        if isinstance(value, str) and not Path(value).is_file():
            raise ValueError(f"expected an array, or a file with one requirement a line; {value} is a folder")
        for text in () if isinstance(value, str) else value:
            try:
                Requirement(text)
            except InvalidRequirement as error:
                what = f"expected requirements such as 'hpsv3==1.0.0', not {text!r} ({str(error).splitlines()[0]})"
                raise ValueError(f"{what}; options and local folders go into a requirements file") from None

    @environment.validator
    def _is_an_environment(self, attribute: attrs.Attribute[Any], value: str | None) -> None:
        if value is None:
            return
        if not (Path(value) / "bin" / "python").exists():
            raise ValueError(f"{value} is no environment of Python: it has no bin/python")
        if self.requirements or self.python:
            raise ValueError("it is used as it is, so `requirements` and `python` have no use beside it")


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides("isolated", IsolatedSpec, TARGET, "A function that scores, with whatever packages it needs.")
