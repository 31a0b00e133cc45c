"""Where is kept what can be made again: the user's cache, and in it the files that lay inside others. No torch."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from pathlib import Path, PurePath

from flowfactory.errors import RunError, shown

ELSEWHERE = "FLOWFACTORY_CACHE in the environment, or [memory] cache in the spec, names another folder"

_ENDING = re.compile(r"\.\w{1,8}", re.ASCII)


def user_folder() -> Path:
    """Where caches are kept: `$FLOWFACTORY_CACHE`, or `flowfactory` in `$XDG_CACHE_HOME` or in `~/.cache`.

    Raises:
        RunError: none of these is known, as where a user has no home.
    """
    try:
        if chosen := os.environ.get("FLOWFACTORY_CACHE"):
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowfactory"
    except RuntimeError as error:
        raise RunError(f"there is no home to keep encoded prompts in: {error}; {ELSEWHERE}") from error


def unpacked_folder(chosen: str | None) -> Path:
    """Where files are kept that lay inside others: in the folder `[memory] cache` names, or else in the user's."""
    return (Path(chosen).expanduser().absolute() if chosen else user_folder()) / "unpacked"


def unpack(data: bytes, name: str, folder: Path) -> Path:
    """A file of its own for what lay inside another, called by its content and ending as `name` does.

    It is written unless it is there, whole or not at all; any number of processes may do the same.

    Raises:
        RunError: the folder cannot be written.
    """
    ending = PurePath(name).suffix
    path = folder / (hashlib.sha256(data).hexdigest() + (ending if _ENDING.fullmatch(ending) else ""))
    partial = folder / f".writing-{uuid.uuid4().hex}"
    try:
        if not path.is_file() or path.stat().st_size != len(data):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(data)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise RunError(f"what lies in a data file cannot be kept in {shown(folder)}: {why}; {ELSEWHERE}") from error
    return path
