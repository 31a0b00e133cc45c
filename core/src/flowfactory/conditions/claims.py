"""Sharing work among processes that know nothing of each other: who is working on what, in one folder.

A claim is a file with the keys a process works on, beside a lock file the process holds while it lives. Locks are the
operating system's, so the claim of a killed process is void at once. Claims change only under one mutex. What is
finished is noted in a list there, so that nobody has to look at everything again to know what others have done.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flowfactory.runs import files

DONE = "done"
"""The list of what is finished, while somebody works; a line each."""


class Claims:
    """The claims in a folder, which is made when somebody works.

    mutex: held while claims, or what is shared with their holders, are looked at and changed; may be nested.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.mutex = _Lock(folder / "mutex")

    @contextmanager
    def holder(self) -> Iterator[Claim]:
        """A claim on nothing yet, which ends with the block."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{uuid.uuid4().hex}.json"
        lock = _Lock(_lock(file))
        with lock:
            try:
                with self.mutex:
                    self.taken(file)
                    if not self._others(file):
                        self._list.unlink(missing_ok=True)
                    file.write_text("[]")
                yield Claim(self, file)
            finally:
                with self.mutex:
                    file.unlink(missing_ok=True)
                    if not self._others(file):
                        self._list.unlink(missing_ok=True)
        _lock(file).unlink(missing_ok=True)

    def taken(self, own: Path) -> tuple[set[str], bool]:
        """What other living processes claim, and whether claims of dead ones were found, and removed."""
        keys: set[str] = set()
        died = False
        for file in self._others(own):
            try:
                with _Lock(_lock(file), 0):
                    file.unlink()
                _lock(file).unlink(missing_ok=True)
                died = True
            except Timeout:
                keys.update(_keys(file))
        return keys, died

    def note(self, names: Sequence[str]) -> int:
        """Note what is finished, under the mutex; returns by how much the list has grown."""
        text = "".join(f"{name}\n" for name in names).encode()
        if text:
            with self._list.open("ab") as file:
                file.write(text)
        return len(text)

    def noted(self, start: int) -> tuple[list[str], int]:
        """What was noted since a place in the list, and the next place; under the mutex."""
        if not self._list.exists():
            return [], 0
        with self._list.open("rb") as file:
            file.seek(start)
            text = file.read()
        return text.decode("utf-8", "replace").split(), start + len(text)

    @property
    def _list(self) -> Path:
        return self._folder / DONE

    def _others(self, own: Path) -> list[Path]:
        return [file for file in self._folder.glob("*.json") if file != own]


class Claim:
    """What one process works on."""

    def __init__(self, claims: Claims, file: Path) -> None:
        self._claims, self._file, self._place = claims, file, 0

    def take(
        self, wanted: Callable[[Sequence[str] | None], Iterator[str]], most: int, finished: Sequence[str] = ()
    ) -> list[str]:
        """Give up what was claimed so far, and claim up to `most` of the wanted keys that nobody else has.

        Args:
            wanted: asked under the mutex, told what others have finished since; `None` where one of them has died, so
                that nobody knows what it has finished.
            finished: what came of the last claim.
        """
        with self._claims.mutex:
            taken, died = self._claims.taken(self._file)
            others, self._place = self._claims.noted(self._place)
            self._place += self._claims.note(finished)
            mine: list[str] = []
            for key in wanted(None if died else others):
                if len(mine) == most:
                    break
                if key not in taken:
                    mine.append(key)
            self._file.write_text(json.dumps(mine))
        return mine

    def give_up(self, finished: Sequence[str]) -> None:
        """Claim nothing any more; what came of the last claim is noted."""
        with self._claims.mutex:
            self._claims.note(finished)
            self._file.write_text("[]")


class _Lock(FileLock):
    """A lock file whose mode the umask decides, so that a group can share a cache."""

    def __init__(self, path: Path, timeout: float = -1) -> None:
        super().__init__(path, timeout, mode=files.mode(0o666))

    def __enter__(self) -> _Lock:
        Path(self.lock_file).parent.mkdir(parents=True, exist_ok=True)
        super().__enter__()
        return self


def _keys(file: Path) -> list[str]:
    """What a claim says; nothing where that is damaged: the worst that follows is work done twice."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return [key for key in found if isinstance(key, str)] if isinstance(found, list) else []


def _lock(file: Path) -> Path:
    return file.with_suffix(".lock")
