"""The condition cache: every distinct row is encoded once, before training, and kept for later runs.

One folder per encoder identity. In it lie shards, safetensors files of up to `SHARD` rows, each named by the hash of
its content: a shard is whole or it is found out. Rows are named by the hash of what is encoded of them. Reading a row
takes tensors from memory-mapped files and parses nothing. Any number of processes fill a folder together (`claims`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowfactory.conditions.claims import Claims
from flowfactory.contracts.types import Conditions, Row, moved
from flowfactory.data.store import ELSEWHERE, user_folder
from flowfactory.errors import RunError, shown
from flowfactory.plan.working import readable
from flowfactory.runs import files

SHARD = 32
"""Most rows of a shard, which are what a killed process loses."""

WAIT = 0.2
"""Seconds between looks at what other processes are encoding."""

MAPS = 256
"""Most files of a cache that are open at a time."""

Names = Mapping[str, str]
"""For each condition of a row, the tensor of the shard that holds it; equal tensors are stored once."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def cache_folder(chosen: str | None) -> Path:
    """Where conditions are kept: the folder `[memory] cache` names, or else the user's."""
    return Path(chosen).expanduser().absolute() if chosen else user_folder() / "conditions"


def row_key(row: Row) -> str:
    """A row by what is encoded of it: prompt, negative prompt, and the content of its images."""
    return _row_key(row.prompt, row.negative_prompt, row.images)


@functools.cache
def _row_key(prompt: str, negative_prompt: str | None, images: tuple[Path, ...]) -> str:
    parts = [prompt, negative_prompt, [files.sha256(image) for image in images]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@attrs.frozen(eq=False)
class Shard:
    """What a file holds: for each row that is wanted, the tensors that make it up."""

    path: Path
    rows: Mapping[str, Names]

    @classmethod
    def read(cls, path: Path, wanted: Mapping[str, Any]) -> Shard | None:
        """The shard in a file; `None` if it is damaged. The content of one without wanted rows is not looked at."""
        try:
            rows: dict[str, Names] = json.loads(opened(path).metadata()["rows"])
            mine = {key: dict(names) for key, names in rows.items() if key in wanted}
            return cls(path, mine) if not mine or whole(path) else None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def opened(path: Path) -> Any:
    """A memory-mapped file of tensors."""
    return safe_open(path, framework="pt")


def whole(path: Path) -> bool:
    """Whether a shard's content is what its name says."""
    return files.sha256(path) == path.stem


class ConditionCache:
    """The conditions of some rows, on the disk, under one encoder identity.

    Args:
        folder: of all identities.
        identity: what conditions depend on besides their row, as JSON.
        rows: which conditions are wanted; repeats allowed.
        say: told of damaged shards.
        name: a row by what is encoded of it.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        rows: Sequence[Row],
        say: Callable[[str], None],
        name: Callable[[Row], str] = row_key,
    ) -> None:
        text = json.dumps(identity, indent=2, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._claims = Claims(self.folder / "claims")
        self._name = name
        self._rows = {name(row): row for row in rows}
        self._say = say
        self._seen: set[str] = set()
        self._holders: dict[str, Shard] = {}
        self._left = dict.fromkeys(self._rows)
        self._opened = functools.lru_cache(MAPS)(opened)
        with self._reached():
            files.sweep(self.folder)
            if not (self.folder / "identity.json").exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                files.write_whole(self.folder / "identity.json", text.encode())

    def __getitem__(self, row: Row) -> Conditions:
        """A row's conditions `(1, …)`, on the CPU, backed by a memory-mapped file."""
        key = self._name(row)
        shard = self._holders[key]
        with self._reached():
            tensors = self._opened(shard.path)
        return {name: tensors.get_tensor(tensor) for name, tensor in shard.rows[key].items()}

    def missing(self, rows: Sequence[Row] | None = None) -> list[str]:
        """Keys of the rows that nobody has encoded yet; damaged shards are named, removed, and so are missing.

        Args:
            rows: which of the cache's; all of them when absent.

        Raises:
            RunError: the folder cannot be read.
        """
        with self._reached():
            self._look(sorted(path.name for path in self.folder.glob("*.safetensors")))
        return list(self._lacking(rows))

    def _lacking(self, rows: Sequence[Row] | None) -> Collection[str]:
        return self._left if rows is None else dict.fromkeys(k for k in map(self._name, rows) if k in self._left)

    def fill(
        self,
        encode: Callable[[Sequence[Row]], Conditions],
        advance: Callable[[int], None],
        stopped: Callable[[], bool] = never,
        rows: Sequence[Row] | None = None,
    ) -> None:
        """Encode what is missing, sharing the work with every process that does the same; returns when all is there.

        Args:
            encode: asked for one row at a time, so that its answer does not depend on a row's neighbours.
            advance: told of every further row that is there, whoever encoded it.
            stopped: asked before every row; who is stopped keeps what it has, and returns before all is there.
            rows: which of the cache's; all of them when absent.

        Raises:
            RunError: the cache cannot be written, or has no room for what is still to come.
        """
        if not self.missing(rows):
            return
        with ExitStack() as stack:
            with self._reached():
                claim = stack.enter_context(self._claims.holder())
            self.missing()
            finished: list[str] = []
            while self._lacking(rows) and not stopped():
                left = len(self._left)
                with self._reached():
                    mine = claim.take(lambda others: self._wanted(others, rows), SHARD, finished)
                encoded: dict[str, Conditions] = {}
                for key in mine:
                    if stopped():
                        break
                    encoded[key] = encode([self._rows[key]])
                    advance(1)
                finished = [self._write(encoded)] if encoded else []
                if not mine and self._lacking(rows):
                    time.sleep(WAIT)
                advance(left - len(self._left) - len(encoded))
            with self._reached():
                claim.give_up(finished)

    def _wanted(self, others: Sequence[str] | None, rows: Sequence[Row] | None) -> Iterator[str]:
        """What is left after others have finished some shards; after nobody knows what, where one has died."""
        found = [path.name for path in self.folder.glob("*.safetensors")] if others is None else others
        self._look(sorted(found))
        return iter(self._lacking(rows))

    def _look(self, names: Sequence[str]) -> None:
        """Take note of shards that were not seen so far."""
        paths = [self.folder / name for name in names if name not in self._seen]
        if not paths:
            return
        with ThreadPoolExecutor() as pool:
            shards = list(pool.map(lambda path: Shard.read(path, self._rows), paths))
        for path, shard in zip(paths, shards, strict=True):
            if shard is None:
                self._discard(path)
            else:
                self._keep(shard)

    def _keep(self, shard: Shard) -> None:
        self._seen.add(shard.path.name)
        for key in shard.rows:
            self._holders[key] = shard
            self._left.pop(key, None)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What hinders the cache's folder ends the run in words.

        Raises:
            RunError: naming the file, the reason, and what else could be done.
        """
        try:
            yield
        except OSError as error:
            place = shown(Path(error.filename or self.folder))
            why = f"what is encoded cannot be kept in {shown(self.folder)}: {place}: {error.strerror or error}"
            raise RunError(f"{why}; {ELSEWHERE}") from error

    def _write(self, encoded: Mapping[str, Conditions]) -> str:
        """Write a shard; returns its name."""
        tensors: dict[str, Tensor] = {}
        rows = {
            key: {name: _place(tensor, tensors) for name, tensor in conditions.items()}
            for key, conditions in encoded.items()
        }
        data = safetensors.torch.save(tensors, {"rows": json.dumps(rows)})
        path = self.folder / f"{hashlib.sha256(data).hexdigest()}.safetensors"
        with self._reached():
            files.write_whole(path, data)
        self._keep(Shard(path, rows))
        self._refuse_without_room(len(data) / len(encoded))
        return path.name

    def _refuse_without_room(self, each: float) -> None:
        """Raises:
        RunError: so many bytes for each row that is left are more than the disk has.
        """
        with self._reached():
            free = shutil.disk_usage(self.folder).free
        if each * len(self._left) > free:
            what = (
                f"{len(self._left)} rows are still to be encoded and kept in {shown(self.folder)}, at {readable(each)}"
            )
            raise RunError(f"{what} each, and its disk has {readable(free)} left; make room: {ELSEWHERE}")

    def _discard(self, path: Path) -> None:
        # Another process may have done so and encoded the rows anew, under the same name since they are the same.
        with self._claims.mutex:
            if path.exists() and not whole(path):
                path.unlink()
                self._say(f"{path} is damaged: it is removed and its rows are encoded again")


def _place(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    """Add a tensor to those of a shard unless its equal is there; returns its name there."""
    own = tensor.detach().cpu().contiguous().clone()
    content = own.reshape(-1).view(torch.uint8).numpy().tobytes()
    name = hashlib.sha256(f"{own.dtype} {tuple(own.shape)}".encode() + content).hexdigest()
    tensors.setdefault(name, own)
    return name


class Source(Protocol):
    """Whatever knows the conditions `(1, …)` of a row."""

    def __getitem__(self, row: Row) -> Conditions: ...


class ConditionStore:
    """The conditions of a sequence of rows, by number, joined as their adapter does it."""

    def __init__(
        self, source: Source, rows: Sequence[Row], collate: Callable[[Sequence[Conditions]], Conditions]
    ) -> None:
        self.source, self.rows, self._collate = source, rows, collate

    def batch(self, rows: Sequence[int], device: torch.device) -> Conditions:
        """Conditions of the rows with these numbers, repeats allowed, on `device`."""
        found = {row: self.source[self.rows[row]] for row in set(rows)}
        return moved(self._collate([found[row] for row in rows]), device)
