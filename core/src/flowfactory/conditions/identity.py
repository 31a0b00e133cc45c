"""What conditions depend on besides their row: the encoder's identity. Equal identities promise equal conditions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import snapshot_download

from flowfactory.contracts.adapter import Adapter
from flowfactory.data.refusals import fetched, refusal
from flowfactory.data.store import user_folder
from flowfactory.runs import files
from flowfactory.spec.kinds import attributes, plain

log = logging.getLogger("flowfactory")

LIBRARIES = ("diffusers", "transformers")
MEMORY = "fingerprints.json"


def encoder_identity(
    adapter: Adapter[Any], dtype: str, versions: Mapping[str, str], folder: Path | None = None
) -> dict[str, Any]:
    """The identity of an adapter's encoders, as JSON; the adapter need not be loaded.

    Args:
        dtype: what the weights are loaded in.
        versions: of the adapter's plugin.
        folder: where the hashes of files are kept; the user's when absent.

    Raises:
        ValueError: there is no checkpoint at the spec's `path`.
    """
    spec = {name: plain(value) for name, value in attributes(adapter.spec).items()}
    apart = {"path", *adapter.not_encoded}
    return {
        "adapter": f"{type(adapter).__module__}.{type(adapter).__qualname__}",
        "versions": {
            **versions,
            "flowfactory": importlib.metadata.version("flowfactory"),
            **{name: _series(importlib.metadata.version(name)) for name in LIBRARIES},
        },
        "dtype": dtype,
        "spec": {name: value for name, value in spec.items() if name not in apart},
        "checkpoint": fingerprint(adapter.spec.path, adapter.spec.revision, adapter.encodes_with, folder),
    }


def fingerprint(path: str, revision: str | None, counts: Callable[[PurePath], bool], folder: Path | None = None) -> str:
    """A checkpoint by content: a hash over the files that count, or the commit of a hub checkpoint.

    Args:
        counts: whether a file, by its path inside the checkpoint, is part of it.

    Raises:
        ValueError: there is no checkpoint.
    """
    here = Path(path)
    if not here.exists():
        return _commit(path, revision)
    found = sorted(file for file in here.rglob("*") if file.is_file()) if here.is_dir() else [here]
    parts = {str(file.relative_to(here)): file for file in found if _visible(file.relative_to(here))}
    memory = (folder or user_folder()) / MEMORY
    return _hash({name: file for name, file in parts.items() if counts(PurePath(name))}, memory)


def _visible(path: PurePath) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _commit(path: str, revision: str | None) -> str:
    """Where the hub's `revision` points to; without a connection, where it pointed last."""
    try:
        ask = partial(snapshot_download, path, revision=revision, allow_patterns="model_index.json")
        folder = fetched(ask, path)
    except Exception as error:  # of whatever library the connection is made with
        refused = refusal(error, path, revision)
        raise ValueError(refused or f"{path} is neither a folder here nor to be had from the hub: {error}") from error
    return f"commit {Path(folder).name}"


def _hash(found: Mapping[str, Path], memory: Path) -> str:
    """Over names and contents. Files read before are not read again while their size and time stay as they were.

    A memory that is damaged, or cannot be written, costs nothing but time.
    """
    known = _remembered(memory)
    new = {}
    for file in found.values():
        facts = file.stat()
        look = [facts.st_size, facts.st_mtime_ns]
        if known.get(str(file.resolve()), [None])[:-1] != look:
            new[str(file.resolve())] = [*look, files.sha256(file)]
    if new:
        known = _remembered(memory) | new
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(memory, json.dumps(known).encode())
        except OSError as error:
            log.debug("%s cannot be written: %s", memory, error)
    lines = [f"{name} {known[str(file.resolve())][-1]}" for name, file in sorted(found.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _remembered(memory: Path) -> dict[str, list[Any]]:
    try:
        remembered = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = remembered.items() if isinstance(remembered, dict) else ()
    return {file: look for file, look in entries if isinstance(look, list) and [*map(type, look)] == [int, int, str]}


def _series(version: str) -> str:
    """Major and minor version: patches do not change what a library computes."""
    return ".".join(version.split(".")[:2])
