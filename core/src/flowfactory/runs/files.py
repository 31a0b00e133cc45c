"""Files that are complete or absent, never in between."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from flowfactory.errors import RunError, shown

PARTIAL, OLD = ".writing-", "-old"
DAY = 86400.0

_NOT_AS_THEY_ARE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What some programs take for the end of a line, or cannot be written at all."""


def write_whole(path: Path, data: bytes) -> None:
    """Write `path` completely or not at all: under a temporary name, flushed to the disk, then renamed."""
    partial = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
    try:
        partial.write_bytes(data)
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def line(value: Any) -> str:
    """A value as a line of JSON, its end included: one line for every program."""
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_AS_THEY_ARE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def lines(path: Path) -> list[str]:
    """The lines of a file, which end at line feeds and nowhere else; the last may have been cut within a character."""
    text = path.read_bytes().decode("utf-8", "replace")
    return text.removesuffix("\n").split("\n") if text else []


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, beside `folder`, whose place it takes once all is written.

    If anything goes wrong, nothing is left of it and `folder` stays as it was. What a killed process leaves, the next
    one takes away.
    """
    folder = folder.resolve()
    made = [above for above in folder.parents if not above.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _locked(folder.parent):  # here and below, other processes may be about to do the same
            _clear(folder)
            partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{folder.name}-", dir=folder.parent))
            stack.enter_context(_locked(partial))
        try:
            yield partial
            settle(partial)
            old = partial.with_name(f"{partial.name}{OLD}")
            with _locked(folder.parent):
                if folder.exists():
                    folder.rename(old)
                partial.rename(folder)
            flush(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            for above in made:
                with suppress(OSError):  # something is in it
                    above.rmdir()


def _clear(folder: Path) -> None:
    """Take away what killed processes left beside a folder, but for its former content where that is all there is."""
    left = re.compile(rf"{re.escape(PARTIAL + folder.name)}-\w{{8}}({OLD})?")
    for path in sorted(folder.parent.iterdir(), reverse=True):
        if (found := left.fullmatch(path.name)) is None:
            continue
        with suppress(OSError), _locked(path, fcntl.LOCK_NB) as ours:
            if ours and found[1] and not folder.exists():
                path.rename(folder)
            elif ours:
                shutil.rmtree(path)


@contextmanager
def _locked(folder: Path, kind: int = 0) -> Iterator[bool]:
    """Lock a folder, as long as that lasts and this process lives; whether that can be done."""
    descriptor, locked = os.open(folder, os.O_RDONLY), False
    try:
        with suppress(OSError):  # somebody has, or there are no locks on this disk
            fcntl.flock(descriptor, fcntl.LOCK_EX | kind)
            locked = True
        yield locked
    finally:
        os.close(descriptor)


def see_writable(path: Path) -> None:
    """Check that a file or folder could be written at `path`, by writing to the nearest folder above it that exists.

    Raises:
        OSError: it cannot.
    """
    path = path.resolve()
    above = next((place for place in path.parents if place.exists()), path)
    for name in path.relative_to(above).parts:
        with suppress(FileNotFoundError):
            (above / name).lstat()  # what is too long for a name is told
    probe = above / f"{PARTIAL}{uuid.uuid4().hex}"
    probe.mkdir()
    probe.rmdir()


def settle(folder: Path) -> None:
    """Give every file and folder in `folder`, and itself, the mode that new ones have here, and flush them.

    Libraries that write through a temporary file leave its mode, 0600, whatever the umask is.
    """
    new = folder / f"{PARTIAL}{uuid.uuid4().hex}"
    new.mkdir()
    inside = new / "file"
    inside.touch()
    mode_of_folders, mode_of_files = new.stat().st_mode & 0o777, inside.stat().st_mode & 0o777
    shutil.rmtree(new)
    for path in [*folder.rglob("*"), folder]:
        mode = mode_of_folders if path.is_dir() else mode_of_files
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
        flush(path)


def mode(wanted: int) -> int:
    """What the umask leaves of a mode."""
    mask = os.umask(0o077)
    os.umask(mask)
    return wanted & ~mask


def inside(folder: Path, file: Path) -> bool:
    """Whether there is such a file in a folder, and no link leads out of it."""
    try:
        return file.is_file() and file.resolve().is_relative_to(folder.resolve())
    except OSError:  # its name is longer than names are
        return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What hinders writing `path`, a file or a folder, ends the run in words.

    Raises:
        RunError: naming `path` and the system's reason.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{shown(path)} cannot be written: {error.strerror or error}") from error


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder, a day ago or longer."""
    for partial in folder.glob(f"{PARTIAL}*"):
        try:
            if time.time() - partial.stat().st_mtime > DAY:
                partial.unlink()
        except OSError:  # somebody else has, or it is somebody else's
            continue


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32(path: Path) -> int:
    """A checksum of a file's content: sees what a disk has lost, not what somebody has forged."""
    crc, buffer = 0, memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
    return crc
