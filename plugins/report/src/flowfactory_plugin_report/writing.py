"""Files that are complete or absent, and what keeps them from being written, in words."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flowfactory import RunError


class Refused(RunError):
    """What was asked for cannot be done; nothing is wrong with a run."""

    code = 2


def shown(path: Path) -> str:
    """A path as messages show it: relative when it lies under the current folder."""
    absolute, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(absolute, here) if absolute.startswith(here + os.sep) else absolute


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What hinders writing `path`, a file or a folder, in words.

    Raises:
        Refused: naming `path` and the system's reason.
    """
    try:
        yield
    except OSError as error:
        raise Refused(f"{shown(path)} cannot be written: {error.strerror or error}") from error


def writable(path: Path) -> None:
    """See that a file could be written at `path`: the folder above it, or above that, is written to.

    Raises:
        OSError: it cannot.
    """
    path = path.resolve()
    above = next((place for place in path.parents if place.exists()), path)
    for name in path.relative_to(above).parts:
        with suppress(FileNotFoundError):
            (above / name).lstat()  # what is too long for a name is told
    probe = above / f".writing-{uuid.uuid4().hex}"
    probe.mkdir()
    probe.rmdir()


def write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: a link that lies there gives way, what it leads to stays."""
    partial = path.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
