"""Sharing work among processes that know nothing of each other: who is working on what, in one folder.

A claim is a file with the keys a process works on, beside a lock file the process holds while it lives. Locks are the
operating system's, so the claim of a killed process is void at once. Claims change only under one mutex.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Claims:
    """The claims in a folder, which is made if need be.

    mutex: held while claims, or what is shared with their holders, are looked at and changed; may be nested.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.mutex = FileLock(folder / "mutex")

    @contextmanager
    def holder(self) -> Iterator[Claim]:
        """A claim on nothing yet, which ends with the block."""
        file = self._folder / f"{uuid.uuid4().hex}.json"
        lock = FileLock(_lock(file))
        with lock:
            try:
                yield Claim(self, file)
            finally:
                with self.mutex:
                    file.unlink(missing_ok=True)
        _lock(file).unlink(missing_ok=True)

    def taken(self, own: Path) -> set[str]:
        """What other living processes claim. Claims of dead ones are removed."""
        keys: set[str] = set()
        for file in self._folder.glob("*.json"):
            if file != own:
                try:
                    with FileLock(_lock(file), timeout=0):
                        file.unlink()
                    _lock(file).unlink(missing_ok=True)
                except Timeout:
                    keys.update(json.loads(file.read_text()))
        return keys


class Claim:
    """What one process works on."""

    def __init__(self, claims: Claims, file: Path) -> None:
        self._claims, self._file = claims, file

    def take(self, wanted: Callable[[], Sequence[str]], most: int) -> list[str]:
        """Give up what was claimed so far, and claim up to `most` of the wanted keys that nobody else has.

        Args:
            wanted: asked under the mutex, so that it sees whatever others finished before they gave up their claims.
        """
        with self._claims.mutex:
            taken = self._claims.taken(self._file)
            mine = [key for key in wanted() if key not in taken][:most]
            self._file.write_text(json.dumps(mine))
        return mine


def _lock(file: Path) -> Path:
    return file.with_suffix(".lock")
