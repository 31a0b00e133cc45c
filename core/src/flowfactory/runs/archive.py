"""The checkpoints of a run as they lie on the disk: which there are, what made them, whether they are whole.

`state.json` holds the size and the CRC-32 of every file beside it, and a CRC-32 of itself, so that a file that was cut
short or has lost a bit is noticed before anything is trained on it. CRC-32 was measured at 1.5 GB/s on one core, and
files are read side by side: nothing for adapters, and for whole models about what writing them to a good disk takes.
It guards against disks, not against people. Imports no torch.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import attrs

from flowfactory.errors import RunError, shown
from flowfactory.runs.files import PARTIAL, crc32

CHECKPOINTS, STATE, BEST = "checkpoints", "state.json", "best"
OPTIMIZER, TRAINER = "optimizer", "trainer"
"""Of a checkpoint's files, those that hold no weights; a role's optimizer is in `optimizer.<role>.safetensors`."""


@attrs.frozen
class Origin:
    """What made a checkpoint.

    digest: of the plan. world: number of processes. versions: of core, of the plugins in use and of the libraries.
    """

    digest: str
    world: int
    versions: Mapping[str, str]


@attrs.frozen
class File:
    """A file beside `state.json`, as it was written."""

    bytes: int
    crc32: int


@attrs.frozen
class State:
    """The content of `state.json`: how many epochs and optimizer steps are done, of which run, and every other file."""

    epoch: int
    step: int
    origin: Origin
    files: Mapping[str, File]


def name(epoch: int) -> str:
    """The folder of the checkpoint after `epoch`."""
    return f"epoch-{epoch:04d}"


def epoch_of(path: Path) -> int:
    """The epoch after which a checkpoint was written."""
    return int(path.name.removeprefix("epoch-"))


def is_set(stem: str) -> bool:
    """Whether a file of a checkpoint, by its name without ending, holds a set of weights."""
    return stem.partition(".")[0] not in (OPTIMIZER, TRAINER)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first. Each was complete when it got its name."""
    found = [path for path in folder.glob("epoch-*") if re.fullmatch(r"epoch-\d{4,}", path.name) and path.is_dir()]
    return sorted(found, key=epoch_of)


def hidden(name: str) -> bool:
    """Whether a file is none of ours: what systems, tools and network disks leave in any folder begins with a dot."""
    return name.startswith(".")


def seal(folder: Path, epoch: int, step: int, origin: Origin) -> None:
    """Write `state.json` about the files in `folder`."""
    state = State(epoch, step, origin, _files(sorted(f for f in folder.iterdir() if not hidden(f.name))))
    record = attrs.asdict(state)
    text = json.dumps({**record, "crc32": _crc32(record)}, indent=2)
    (folder / STATE).write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> State:
    """What the `state.json` of a checkpoint says.

    Raises:
        ValueError: it is missing or damaged; the message names it.
    """
    try:
        record = json.loads((path / STATE).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("it is not what was written")
        if record.pop("crc32") != _crc32(record):
            raise ValueError("its checksum is another than when it was written")
        files = {name: File(**file) for name, file in record.pop("files").items()}
        return State(origin=Origin(**record.pop("origin")), files=files, **record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{shown(path / STATE)} cannot be read: {_reason(error)}") from error


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, naming the file; empty when it is what was written, to the bit."""
    try:
        state = read(path)
        if path.name != name(state.epoch):
            raise ValueError(f"{shown(path / STATE)} is of {name(state.epoch)}")
        for file, written in state.files.items():
            found = (path / file).stat().st_size if (path / file).is_file() else None
            if found != written.bytes:
                has = "is missing" if found is None else f"has {found} bytes"
                raise ValueError(f"{shown(path / file)} {has}; {written.bytes} were written")
        for file, now in _files([path / file for file in state.files]).items():
            if now != state.files[file]:
                raise ValueError(f"{shown(path / file)} has another content than what was written")
    except (OSError, ValueError) as error:
        return _reason(error)
    unknown = sorted({f.name for f in path.iterdir() if not hidden(f.name)} - {STATE, *state.files})
    return f"{shown(path / unknown[0])} was not written with this checkpoint" if unknown else ""


def tidy(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` checkpoints and that of epoch `best`, and what killed processes have left.

    A checkpoint loses its name before its files, so that none is ever incomplete. What cannot be removed is tried
    again the next time.
    """
    old = [path for path in checkpoints(folder)[:-keep] if epoch_of(path) != best]
    for left in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)
    for path in old:
        with _locked(path, "rb+", fcntl.LOCK_EX) as mine:
            if mine:
                shutil.rmtree(path.rename(folder / f"{PARTIAL}{path.name}"), ignore_errors=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """While active, `tidy` leaves a checkpoint where it is.

    Raises:
        RunError: it is not there any more.
    """
    with _locked(path, "rb", fcntl.LOCK_SH) as mine:
        if not mine or not path.is_dir():
            raise RunError(f"{shown(path)} is being removed, since there are newer ones; try again")
        yield


@contextmanager
def _locked(path: Path, how: Literal["rb", "rb+"], kind: int) -> Iterator[bool]:
    """Whether nobody has a checkpoint who excludes this one. Without locks, or without the file, nobody does."""
    with ExitStack() as stack:
        try:
            fcntl.flock(stack.enter_context((path / STATE).open(how)), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def point_at(run: Path, best: int) -> None:
    """Let `best` in a run's folder lead to the checkpoint of that epoch, where the disk knows links."""
    partial, target = run / f"{PARTIAL}{BEST}", Path(CHECKPOINTS) / name(best)
    with suppress(OSError):
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        partial.replace(run / BEST)


def _files(paths: list[Path]) -> dict[str, File]:
    with ThreadPoolExecutor() as pool:  # zlib lets other threads run
        sums = list(pool.map(crc32, paths))
    return {path.name: File(path.stat().st_size, crc) for path, crc in zip(paths, sums, strict=True)}


def _crc32(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        where = f"{shown(Path(error.filename))}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
