"""The condition cache: every distinct row is encoded once, before training, and kept for later runs.

One folder per encoder identity. In it lie shards, safetensors files of up to `SHARD` rows, each named by the hash of
its content: a shard is whole or it is found out. Rows are named by the hash of what is encoded of them. Reading a row
takes tensors from memory-mapped files and parses nothing. Any number of processes fill a folder together (`claims`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import attrs
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowfactory.conditions.claims import Claims
from flowfactory.conditions.identity import user_folder
from flowfactory.contracts.types import Conditions, Row, moved
from flowfactory.runs import files

SHARD = 32
"""Most rows of a shard, which are what a killed process loses."""

WAIT = 0.2
"""Seconds between looks at what other processes are encoding."""

Names = Mapping[str, str]
"""For each condition of a row, the tensor of the shard that holds it; equal tensors are stored once."""


def cache_folder(chosen: str | None) -> Path:
    """Where conditions are kept: the folder `[memory] cache` names, or else the user's."""
    return Path(chosen).expanduser() if chosen else user_folder() / "conditions"


def row_key(row: Row) -> str:
    """A row by what is encoded of it: prompt, negative prompt, and the content of its images."""
    return _row_key(row.prompt, row.negative_prompt, row.images)


@functools.cache
def _row_key(prompt: str, negative_prompt: str | None, images: tuple[Path, ...]) -> str:
    parts = [prompt, negative_prompt, [files.sha256(image) for image in images]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@attrs.frozen(eq=False)
class Shard:
    """An open shard: memory-mapped tensors, and which of them make up each row."""

    tensors: Any
    rows: Mapping[str, Names]

    @classmethod
    def read(cls, path: Path, wanted: Mapping[str, Any]) -> Shard | None:
        """The shard in a file; `None` if it is damaged. The content of one without wanted rows is not looked at."""
        try:
            tensors: Any = safe_open(path, framework="pt")
            shard = cls(tensors, json.loads(tensors.metadata()["rows"]))
            return shard if shard.rows.keys().isdisjoint(wanted) or whole(path) else None
        except (SafetensorError, OSError, ValueError, TypeError, KeyError):
            return None

    def row(self, key: str) -> Conditions:
        """One row's conditions `(1, …)`, on the CPU, backed by the file."""
        return {name: self.tensors.get_tensor(tensor) for name, tensor in self.rows[key].items()}


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
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], rows: Sequence[Row], say: Callable[[str], None]
    ) -> None:
        text = json.dumps(identity, indent=2, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._claims = Claims(self.folder / "claims")
        self._rows = {row_key(row): row for row in rows}
        self._say = say
        self._seen: set[Path] = set()
        self._holders: dict[str, Shard] = {}
        files.sweep(self.folder)
        if not (self.folder / "identity.json").exists():
            files.write(self.folder / "identity.json", text.encode())

    def __getitem__(self, row: Row) -> Conditions:
        """A row's conditions `(1, …)`, on the CPU, backed by a memory-mapped file."""
        key = row_key(row)
        return self._holders[key].row(key)

    def missing(self) -> list[str]:
        """Keys of the rows that nobody has encoded yet; damaged shards are named, removed, and so are missing."""
        paths = [path for path in sorted(self.folder.glob("*.safetensors")) if path not in self._seen]
        if paths:
            with ThreadPoolExecutor() as pool:
                shards = list(pool.map(lambda path: Shard.read(path, self._rows), paths))
            for path, shard in zip(paths, shards, strict=True):
                if shard is None:
                    self._discard(path)
                else:
                    self._seen.add(path)
                    self._holders |= dict.fromkeys(shard.rows.keys() & self._rows.keys(), shard)
        return [key for key in self._rows if key not in self._holders]

    def fill(self, encode: Callable[[Sequence[Row]], Conditions], advance: Callable[[int], None]) -> None:
        """Encode what is missing, sharing the work with every process that does the same; returns when all is there.

        Args:
            encode: asked for one row at a time, so that its answer does not depend on a row's neighbours.
            advance: told of every further row that is there, whoever encoded it.
        """
        left = self.missing()
        with self._claims.holder() as claim:
            while left:
                mine = claim.take(self.missing, SHARD)
                encoded = {}
                for key in mine:
                    encoded[key] = encode([self._rows[key]])
                    advance(1)
                if mine:
                    self._write(encoded)
                else:
                    time.sleep(WAIT)
                still = self.missing()
                advance(len(left) - len(still) - len(mine))
                left = still

    def _write(self, encoded: Mapping[str, Conditions]) -> None:
        tensors: dict[str, Tensor] = {}
        rows = {
            key: {name: _place(tensor, tensors) for name, tensor in conditions.items()}
            for key, conditions in encoded.items()
        }
        data = safetensors.torch.save(tensors, {"rows": json.dumps(rows)})
        files.write(self.folder / f"{hashlib.sha256(data).hexdigest()}.safetensors", data)

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
        return moved(self._collate([self.source[self.rows[row]] for row in rows]), device)
