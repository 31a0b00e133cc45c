"""The process's own streams: what people read goes where it did at the start, whatever other people's code does.

Descriptors 0, 1 and 2 belong to everybody. Whoever closes one gives its number away: the next file that is opened has
it, and gets what others print. So there are copies that nobody else knows, and the descriptors are put back by them.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from threading import Lock
from typing import TextIO

_NAMES = {1: "stdout", 2: "stderr"}
_meant, _lock = dict[int, int](), Lock()
"""For each descriptor a copy of what it is to be, while somebody is `speaking`."""


class Voice(io.FileIO):
    """Where words for people go. What cannot be written is lost: a reader who has left ends no run."""

    def write(self, data: object) -> int:
        """Says that all was written, whatever became of it."""
        try:
            super().write(data)  # type: ignore[arg-type]
        except OSError:
            with suppress(OSError):  # somebody has closed even what nobody knows
                os.write(2, data)  # type: ignore[arg-type]
        return memoryview(data).nbytes  # type: ignore[arg-type]

    def close(self) -> None:
        """Somebody may have closed the descriptor."""
        with suppress(OSError):
            super().close()


@contextmanager
def speaking() -> Iterator[tuple[TextIO, TextIO]]:
    """Copies of stdout and stderr that nobody else can close or redirect. While active, `restore` puts back 0, 1 and 2.

    A stream that is no descriptor of the system is given as it is.
    """
    before = dict(_meant)
    for number in (0, 1, 2):
        if _status(number) is None:  # whoever started this closed it; no file of a run may have the number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    _meant.update({number: os.dup(number) for number in (0, 1, 2)})
    own = dict(_meant)
    out, err = _copy(sys.stdout, io.FileIO), _copy(sys.stderr, Voice)
    try:
        yield out, err
    finally:
        for stream, original in ((out, sys.stdout), (err, sys.stderr)):
            if stream is not original:
                with suppress(OSError):  # whoever read it has left
                    stream.close()
        with _lock:
            _meant.clear()
            _meant.update(before)
        for copy in own.values():
            with suppress(OSError):
                os.close(copy)


def _copy(stream: TextIO | None, kind: type[io.FileIO]) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, ValueError):  # a test's, or a program's that calls this one
        return stream
    raw = io.BufferedWriter(kind(descriptor, "w"))
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True)


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """While active, what anybody prints, programs that are started included, goes to stderr: stdout is for data."""
    if sys.stdout is not None:
        sys.stdout.flush()
    out = _meant[1]
    _point(1, _meant[2])
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _point(1, out)


def say(text: str) -> None:
    """A line to stderr at once, whatever else is just being written: for handlers of signals."""
    with suppress(OSError):
        os.write(_meant.get(2, 2), f"\n{text}\n".encode())


def unheard() -> bool:
    """Whether whoever read stdout has left."""
    poll = select.poll()
    poll.register(_meant.get(1, 1), 0)  # what is told then are errors only
    return bool(poll.poll(0))


def restore() -> list[str]:
    """Put back the descriptors that were closed or redirected, and streams that were closed; says which."""
    with _lock:
        changed = [f"descriptor {number}" for number, copy in _meant.items() if _put_back(number, copy)]
    for number, name in _NAMES.items():
        stream = vars(sys)[name]
        if number in _meant and isinstance(stream, io.IOBase) and stream.closed:
            setattr(sys, name, open(number, "w", buffering=1, errors="backslashreplace", closefd=False))  # noqa: SIM115
            changed.append(f"sys.{name}")
    return changed


def _put_back(number: int, copy: int) -> bool:
    """Whether a descriptor was another than its copy, and is no longer. A file that has got the number keeps it."""
    meant, found = _status(copy), _status(number)
    if meant is None:
        return False
    if found is None:
        made = fcntl.fcntl(copy, fcntl.F_DUPFD, number)
        if made != number:  # a file has got it just now
            os.close(made)
        return made == number
    if os.path.samestat(found, meant) or stat.S_ISREG(found.st_mode):
        return False
    os.dup2(copy, number)
    return True


def _status(number: int) -> os.stat_result | None:
    """What a descriptor is; `None` where it is closed."""
    try:
        return os.fstat(number)
    except OSError:
        return None


def _point(number: int, copy: int) -> None:
    with _lock:
        _meant[number] = copy
        os.dup2(copy, number)
