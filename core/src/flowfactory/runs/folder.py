"""A run's folder: whose it is, how it begins, and what is left when nothing came of it. Imports no torch."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from flowfactory.data.text import KINDS
from flowfactory.discovery.entries import Entry
from flowfactory.errors import BAD_SPEC, RunError, shown, typed
from flowfactory.plan import estimate
from flowfactory.plan.plan import PLAN_FILE, SPEC_FILE, Plan
from flowfactory.plan.working import readable
from flowfactory.processes.stop import Stopped
from flowfactory.runs import archive, environment, files
from flowfactory.runs.files import writing
from flowfactory.runs.history import ENVIRONMENT, LOCK, no_run

LOG = "log.txt"
EXPORT = "export.json"
"""In the folder of an export: what it is, and which files belong to it."""
START = {SPEC_FILE, PLAN_FILE, ENVIRONMENT, LOCK, LOG}
"""What lies in the folder of a run before its first epoch."""


class FolderError(RunError):
    """A folder is not what a run needs."""

    code = BAD_SPEC


def new(runs: Path, name: str) -> Path:
    """`runs/name`, or the first of `name-2`, `name-3`, … that nobody has: it is made here, so that nobody else gets it.

    Raises:
        RunError: it cannot be made.
    """
    for number in count(1):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        with writing(folder):
            runs.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                continue
        return folder
    raise AssertionError("numbers do not end")


def vacant(folder: Path, option: str = "--folder") -> None:
    """See that nothing lies in a folder that is to be written, and make it.

    Args:
        option: how it is chosen on the command line.

    Raises:
        FolderError: something does, be it a run or anybody's files.
        RunError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in folder.iterdir() if not archive.hidden(path.name))
    way_on = f"go on with: flowfactory resume {typed(folder)}, or choose another {option}"
    if archive.checkpoints(folder / archive.CHECKPOINTS):
        raise FolderError(f"{shown(folder)} has checkpoints of a run; {way_on}")
    if PLAN_FILE in found:
        raise FolderError(f"{shown(folder)} is the folder of a run that has begun; {way_on}")
    if found:
        what = f"{shown(folder)} is not empty: it has {', '.join(found[:3])}{' …' if len(found) > 3 else ''}"
        raise FolderError(f"{what}; what is written has a folder of its own: choose another {option}")


def see(folder: Path) -> None:
    """See that a folder is that of a run, and nothing in it one that whoever reads or writes it would wait for.

    Raises:
        FolderError: it is not; the message names the runs in it. Or there is a pipe, a socket or a device in it.
    """
    if (folder / PLAN_FILE).is_file():
        return _see_files([*folder.iterdir(), *folder.glob(f"{archive.CHECKPOINTS}/*/*")])
    raise FolderError(no_run(folder))


def _see_files(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError:  # a link that leads nowhere is told by those who follow it
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            what = next((words for test, words in KINDS if test(mode)), "no file")
            raise FolderError(f"{shown(path)} is {what}, which no run leaves; take it away")


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """While active, nobody else begins or goes on with a run in this folder. Locks of dead processes are void.

    Raises:
        FolderError: somebody does so already.
        RunError: the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=0, mode=files.mode(0o666))
    with writing(folder / LOCK):
        try:
            lock.acquire()
        except Timeout:
            why = f"{shown(folder)} is in use: a run goes on there"
            raise FolderError(f"{why}; wait until it has ended, or stop it, and try again") from None
    try:
        yield
    finally:
        lock.release()


def room(folder: Path, plan: Plan) -> None:
    """See that the disk has room for the checkpoints that are still to be written beside each other.

    Raises:
        FolderError: it has not.
    """
    each, keep = estimate.checkpoint_bytes(plan.spec), plan.spec.checkpoint.keep
    most = min(plan["checkpoints"], keep + 1)  # the newest is written before the oldest is removed
    count = max(1, most - len(archive.checkpoints(folder / archive.CHECKPOINTS))) if most else 0
    free = shutil.disk_usage(folder).free
    if each is not None and count * each > free:
        what = f"checkpoints of {readable(each)} are to lie in {shown(folder)}, {count} at a time"
        hint = "make room, set [checkpoint] keep lower, or choose another --runs or --folder"
        raise FolderError(f"{what}, and its disk has {readable(free)} left; {hint}")


def begin(folder: Path, plan: Plan, entries: Sequence[Entry]) -> None:
    """Write what a run begins with.

    Raises:
        FolderError: there is no room for what it is to leave.
        RunError: it cannot be written.
    """
    try:
        with writing(folder):
            room(folder, plan)
            text = json.dumps(environment.metadata(entries), indent=2)
            files.write_whole(folder / ENVIRONMENT, f"{text}\n".encode())
            plan.write(folder)
    except (RunError, Stopped):
        forget(folder)
        raise


def forget(folder: Path, having: Set[str] = START) -> None:
    """Remove the folder of a run that has not begun: nothing lies there but what it may have."""
    with suppress(OSError):
        if {path.name for path in folder.iterdir()} <= having:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()


def still(folder: Path) -> None:
    """See that the folder of a run that goes on is still there.

    Raises:
        RunError: it was deleted or moved.
    """
    if not (folder / PLAN_FILE).is_file():
        what = f"{shown(folder)} was deleted or moved while the run went on, or its {PLAN_FILE} was"
        raise RunError(f"{what}; nothing more is saved there")
