"""What a run left in its folder, for those who look at it afterwards. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from filelock import FileLock, Timeout

from flowfactory.errors import RunError, shown
from flowfactory.plan.plan import PLAN_FILE
from flowfactory.runs import files
from flowfactory.runs.files import inside

if TYPE_CHECKING:
    from PIL import Image
from flowfactory.spec import toml

METRICS, ENVIRONMENT, SAMPLES, TABLE, LOCK = "metrics.jsonl", "env.json", "samples", "samples.jsonl", ".lock"


PLAN = {
    "digest": str,
    "world": int,
    "versions": dict,
    "numbers": [{"name": str, "value": int, "reason": str}],
    "spec": {
        **{table: {"name": str} for table in ("model", "scheduler", "trainer")},
        "run": {"epochs": int},
        "sampling": {"size": [int]},
        "reward": [{"name": str}],
    },
}
"""What is read of a plan, by its shape; of lists that of each entry."""


@attrs.frozen(eq=False)
class Shot:
    """One sample that was kept: its picture, frames side by side, and its scores, `None` where there is none.

    words: texts that rewards gave with scores, by `label/name`.
    """

    file: Path
    frames: int
    prompt: str
    scores: Mapping[str, float | None]
    words: Mapping[str, str] = attrs.field(factory=dict)

    def picture(self) -> Image.Image | None:
        """The picture, decoded; None where it is damaged, or not as runs write them."""
        from flowfactory.runs.pictures import PictureError, opened  # and Pillow, which only some need

        try:
            return opened(self.file)
        except PictureError:
            return None


@attrs.frozen(eq=False)
class History:
    """One run.

    title: distinguishes it from the other runs that were read. plan: the content of `plan.json`.
    packages: versions of the libraries that were used. metrics: by epoch, in order.
    """

    folder: Path
    title: str
    plan: Mapping[str, Any]
    packages: Mapping[str, str]
    metrics: Mapping[int, Mapping[str, float]]
    _kept: dict[str, Mapping[int, Path]] = attrs.field(factory=dict, init=False, repr=False)

    def names(self) -> Sequence[str]:
        """Every metric, in the order of their first appearance."""
        return list(dict.fromkeys(name for line in self.metrics.values() for name in line))

    def series(self, name: str) -> list[tuple[int, float]]:
        """Epoch and value of one metric, where it has one."""
        return [(epoch, line[name]) for epoch, line in self.metrics.items() if name in line]

    def spec_text(self) -> str:
        """Its spec, as TOML."""
        return toml.dumps(self.plan["spec"])

    def going_on(self) -> bool:
        """Whether a process goes on with this run at the moment."""
        return _owned(self.folder)

    def kept(self, kind: str) -> Mapping[int, Path]:
        """The folders of kept samples by epoch, of "eval" or of "epoch" (training). Looked for only once."""
        if kind not in self._kept:
            self._kept[kind] = self._look_for(kind)
        return self._kept[kind]

    def _look_for(self, kind: str) -> Mapping[int, Path]:
        found = {}
        for folder in (self.folder / SAMPLES).glob(f"{kind}-*"):
            if re.fullmatch(rf"{kind}-\d+", folder.name, re.ASCII) and inside(self.folder, folder / TABLE):
                found[int(folder.name.rpartition("-")[2])] = folder
        return dict(sorted(found.items()))

    def shots(self, kind: str, epoch: int, most: int) -> list[Shot]:
        """The first samples of an epoch whose pictures are there.

        Raises:
            RunError: their table cannot be read.
        """
        folder = self.kept(kind)[epoch]
        spec = self.plan["spec"]
        size = (spec.get("eval", {}).get("size") if kind == "eval" else None) or spec["sampling"]["size"]
        frames = size[2] if len(size) > 2 else 1
        found: list[Shot] = []
        for line in _lines(folder / TABLE):
            if not _is_shot(line):
                raise RunError(f"{shown(folder / TABLE)} cannot be read: a line of it describes no sample")
            file = folder / Path(line["file"]).name
            if len(found) < most and inside(self.folder, file):
                found.append(Shot(file, frames, line["prompt"], line["scores"], line.get("words", {})))
        return found


def read_runs(folders: Sequence[Path]) -> list[History]:
    """The runs in these folders, titled by the shortest ends of their paths that are different.

    Raises:
        RunError: a folder is not that of a run, or a file in it cannot be read.
    """
    return [_history(folder, title) for folder, title in zip(folders, titles(folders), strict=True)]


def _owned(run: Path) -> bool:
    if not (run / LOCK).is_file():
        return False
    lock = FileLock(run / LOCK, timeout=0, mode=files.mode(0o666))
    with suppress(OSError):  # as where one may only read
        try:
            lock.acquire()
        except Timeout:
            return True
        lock.release()
    return False


def titles(folders: Sequence[Path]) -> list[str]:
    """Names for folders: their own, longer where two are the same."""
    paths = [folder.resolve().parts for folder in folders]
    deepest = max(map(len, paths))
    for length in range(1, deepest + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(parts) for parts in paths]


def no_run(folder: Path) -> str:
    """What to say of a folder that is not that of a run; it names the runs in it."""
    runs = sorted(path.parent.name for path in folder.glob(f"*/{PLAN_FILE}"))
    why = f"it has no {PLAN_FILE}" if folder.is_dir() else "there is no such folder"
    those = f"; there are runs in it: {', '.join(runs)}" if runs else ""
    return f"{shown(folder)} is not the folder of a run: {why}{those}"


def _history(folder: Path, title: str) -> History:
    if not (folder / PLAN_FILE).is_file():
        raise RunError(no_run(folder))
    plan = _json(folder, PLAN_FILE)
    if missing := min([*lacking(plan), *_holes(plan.get("spec"), "spec")], default=""):
        raise RunError(f"{shown(folder / PLAN_FILE)} is not the plan of a run: it has no `{missing}` as one has")
    table = _own(folder, METRICS)
    return History(folder, title, plan, packages(folder), dict(_epochs(table)) if table.is_file() else {})


def packages(folder: Path) -> dict[str, str]:
    """Versions of the libraries that a run computed with, where it says so.

    Raises:
        RunError: its file cannot be read.
    """
    found = _json(folder, ENVIRONMENT).get("packages", {}) if (folder / ENVIRONMENT).is_file() else {}
    if not isinstance(found, dict):
        raise RunError(f"{shown(folder / ENVIRONMENT)} cannot be read: its `packages` is no table")
    return {name: str(version) for name, version in found.items() if version}


def lacking(found: Any, wanted: Any = PLAN, at: str = "") -> Iterator[str]:
    """Where something has another shape than `wanted`: a table of what is in it, one entry of a list, or a type."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, below in wanted.items():
            yield from lacking(found.get(key), below, f"{at}.{key}".strip("."))
    elif isinstance(wanted, list) and isinstance(found, list):
        for number, entry in enumerate(found):
            yield from lacking(entry, wanted[0], f"{at}[{number}]")
    elif not (isinstance(wanted, type) and isinstance(found, wanted)):
        yield at


def _holes(value: Any, at: str) -> Iterator[str]:
    """Where there is nothing, which no spec can say."""
    if value is None:
        yield at
    elif isinstance(value, dict | list):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _holes(below, f"{at}.{key}" if isinstance(value, dict) else f"{at}[{key}]")


def _own(folder: Path, name: str) -> Path:
    """A file of a run, if that is where it lies."""
    file = folder / name
    if file.exists() and not inside(folder, file):
        raise RunError(f"{shown(file)} is no file of this run: it leads to {file.resolve()}, which is not read")
    return file


def _epochs(table: Path) -> Iterator[tuple[int, dict[str, float]]]:
    for line in _lines(table):
        try:
            own = {name: math.nan if value is None else float(value) for name, value in line.items()}
            yield int(own.pop("epoch")), own
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunError(f"{shown(table)} cannot be read: a line of it holds no metrics of an epoch") from error


def _is_shot(line: Mapping[str, Any]) -> bool:
    texts = all(isinstance(line.get(name), str) for name in ("file", "prompt"))
    scores, words = line.get("scores"), line.get("words", {})
    numbers = isinstance(scores, dict) and all(s is None or type(s) in (int, float) for s in scores.values())
    return texts and numbers and isinstance(words, dict) and all(isinstance(text, str) for text in words.values())


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = _own(folder, name)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{shown(path)} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{shown(path)} cannot be read: it holds no table")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    """A JSON object per line. The last line may be in the making, or what a killed run left of it."""
    try:
        texts = files.lines(path)
    except OSError as error:
        raise RunError(f"{shown(path)} cannot be read: {error}") from error
    found = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number < len(texts):
                raise RunError(f"{shown(path)}:{number}: not JSON: {error}") from error
            continue
        if not isinstance(line, dict):
            raise RunError(f"{shown(path)}:{number}: expected an object, not {text[:40]!r}")
        found.append(line)
    return found
