"""What a run left in its folder, for those who look at it afterwards. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from flowfactory.errors import RunError, shown
from flowfactory.plan.plan import PLAN_FILE

METRICS, ENVIRONMENT, SAMPLES, TABLE = "metrics.jsonl", "env.json", "samples", "samples.jsonl"


@attrs.frozen(eq=False)
class Shot:
    """One sample that was kept: its picture, frames side by side, and its scores, `None` where there is none."""

    file: Path
    frames: int
    prompt: str
    scores: Mapping[str, float | None]


@attrs.frozen(eq=False)
class History:
    """One run.

    title: tells it from the other runs that are looked at. plan: the content of `plan.json`.
    packages: versions of the libraries underneath. metrics: by epoch, in order.
    """

    folder: Path
    title: str
    plan: Mapping[str, Any]
    packages: Mapping[str, str]
    metrics: Mapping[int, Mapping[str, float]]

    def names(self) -> Sequence[str]:
        """Every metric, in the order of their first appearance."""
        return list(dict.fromkeys(name for line in self.metrics.values() for name in line))

    def series(self, name: str) -> list[tuple[int, float]]:
        """Epoch and value of one metric, where it has one."""
        return [(epoch, line[name]) for epoch, line in self.metrics.items() if name in line]

    def kept(self, kind: str) -> Mapping[int, Path]:
        """The folders of kept samples by epoch: of "eval", or of "epoch", which is training."""
        found = {}
        for folder in (self.folder / SAMPLES).glob(f"{kind}-*"):
            if re.fullmatch(rf"{kind}-\d+", folder.name) and (folder / TABLE).is_file():
                found[int(folder.name.rpartition("-")[2])] = folder
        return dict(sorted(found.items()))

    def shots(self, kind: str, epoch: int, most: int) -> list[Shot]:
        """The first samples of an epoch.

        Raises:
            RunError: their table cannot be read.
        """
        folder = self.kept(kind)[epoch]
        spec = self.plan["spec"]
        size = (spec.get("eval", {}).get("size") if kind == "eval" else None) or spec["sampling"]["size"]
        frames = size[2] if len(size) > 2 else 1
        lines = [line for line in _lines(folder / TABLE) if (folder / Path(line["file"]).name).is_file()]
        return [Shot(folder / Path(line["file"]).name, frames, line["prompt"], line["scores"]) for line in lines[:most]]


def read(folders: Sequence[Path]) -> list[History]:
    """The runs in these folders, titled by the shortest ends of their paths that tell them apart.

    Raises:
        RunError: a folder is not that of a run, or a file in it cannot be read.
    """
    return [_history(folder, title) for folder, title in zip(folders, titles(folders), strict=True)]


def titles(folders: Sequence[Path]) -> list[str]:
    """Names for folders: their own, longer where two are the same."""
    paths = [folder.resolve().parts for folder in folders]
    deepest = max(map(len, paths))
    for length in range(1, deepest + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in paths]


def _history(folder: Path, title: str) -> History:
    if not (folder / PLAN_FILE).is_file():
        raise RunError(f"{shown(folder)} is not the folder of a run: it has no {PLAN_FILE}")
    plan = _json(folder / PLAN_FILE)
    machine = _json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else {}
    packages = {name: version for name, version in machine.get("packages", {}).items() if version}
    lines = _lines(folder / METRICS) if (folder / METRICS).is_file() else []
    return History(folder, title, plan, packages, {line["epoch"]: _numbers(line) for line in lines})


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    own = {name: value for name, value in line.items() if name != "epoch"}
    return {name: math.nan if value is None else float(value) for name, value in own.items()}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{shown(path)} cannot be read: {error}") from error


def _lines(path: Path) -> list[Any]:
    """A JSON value per line. The last line may be in the making, or what a killed run left of it."""
    found, texts = [], path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            found.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise RunError(f"{shown(path)}:{number}: not JSON: {error}") from error
    return found
