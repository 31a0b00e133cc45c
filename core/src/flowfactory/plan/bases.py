"""Which checkpoints were distilled, by their names, and what that means for training. Imports no torch."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Literal

import attrs

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.specs import AdapterSpec, DecoupledSpec, SchedulerSpec, TrainerSpec
from flowfactory.spec.tables import Sampling

TABLE = Path(__file__).parent / "distilled.toml"


@attrs.frozen(kw_only=True)
class Distilled:
    """One entry of the table; its comments say what is what."""

    name: str
    title: str
    kind: Literal["steps", "guidance"]
    steps: int = 0
    guidance: float = 1.0
    instead: str = ""


EMBEDDED = Distilled(name="", title="this checkpoint, as it embeds a scale,", kind="guidance")


@functools.cache
def table() -> Sequence[Distilled]:
    """All known ones."""
    return tuple(Distilled(**entry) for entry in tomllib.loads(TABLE.read_text(encoding="utf-8"))["checkpoint"])


def distilled(own: AdapterSpec, embeds_guidance: bool = False) -> Distilled | None:
    """What is known of a checkpoint.

    Args:
        embeds_guidance: whether the configuration of a network of it says so.
    """
    for name in names(own):
        found = next((one for one in table() if re.search(one.name, name, re.IGNORECASE)), None)
        if found is not None:
            return found
    return EMBEDDED if embeds_guidance else None


def names(own: AdapterSpec) -> Iterable[str]:
    """What a checkpoint may be known by: the names of its file and its folder, or the hub's in its cache."""
    if isinstance(own, PipelineSpec) and own.single_file is not None:
        yield PurePath(own.single_file).name
    parts = PurePath(own.path).parts
    cached = [part.split("--")[-1] for part in parts if part.startswith("models--")]
    yield from cached or parts[-1:]


def advice(
    found: Distilled, sampling: Sampling, scheduler: SchedulerSpec, trainer: TrainerSpec, name: str
) -> tuple[str, str]:
    """What a distilled checkpoint is, and what to do about it; `name` is the trainer's."""
    if found.kind == "guidance":
        what = f"{found.title} was distilled to get its guidance scale as an input"
        if sampling.guidance == 1:
            scale = f", e.g. {found.guidance:g}," if found.guidance > 1 else ""
            return what, f"set [sampling] guidance to the one it will be used with{scale} instead of 1"
        return what, f"use the trained model with the same scale, {sampling.guidance:g}"
    what = f"{found.title} was distilled to sample in few steps, without guidance"
    other = f"start from {found.instead}"
    if isinstance(trainer, DecoupledSpec) or trainer.needs.source != "rollouts":
        return what, f"trainer `{name}` matches velocities at any noise level, which undoes it: {other}"
    if sampling.guidance > 1:
        return what, f"set [sampling] guidance to 1, or {other}"
    if sampling.steps > found.steps:
        return what, f"set [sampling] steps to {found.steps} at most, or {other}"
    if scheduler.density == "gaussian":
        return what, f"its steps are too few to take noise away again: set [scheduler] name to `cps`, or {other}"
    return what, f"watch evaluations with its own steps, or {other}"
