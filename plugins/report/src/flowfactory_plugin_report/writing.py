"""What keeps a page from being written, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowfactory import RunError, shown


class Refused(RunError):
    """What was asked for cannot be done; nothing is wrong with a run."""

    code = 2


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
