"""Files and folders that a spec names. Nothing at all is imported to find a package's resource."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path, PurePath

from flowfactory.data import hub
from flowfactory.data.rows import ENDINGS
from flowfactory.data.text import exists as is_there
from flowfactory.data.text import path_of
from flowfactory.errors import did_you_mean

_RESOURCE = re.compile(r"([A-Za-z_][\w.]*):(?![/\\])(.+)")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(written: str, folder: Path, exists: bool) -> str:
    """What a written location stands for: an absolute path, a hub id as it is, or a commit's files of the hub.

    Args:
        folder: what relative paths are relative to.
        exists: whether a hub id is out of the question.

    Raises:
        ValueError: there is nothing there.
    """
    if hub.is_remote(written):
        return _remote(written, exists)
    path = path_of(written, folder)
    resource = _RESOURCE.fullmatch(written)
    if resource is not None:
        return str(_resource(*resource.groups()))
    if is_there(path):
        return str(path)
    is_path = written.startswith((".", "/", "~")) or _HUB_ID.fullmatch(written) is None
    if exists or is_path:
        near = did_you_mean(path.name, _names(path.parent))
        raise ValueError(f"there is no {path}" + (f"; {near}" if near else ""))
    return written


def _remote(written: str, exists: bool) -> str:
    if not exists:
        raise ValueError(f"only data files come from hf://, and {written} is not named as one; a model is `owner/name`")
    if PurePath(written).suffix.lower() not in ENDINGS:
        raise ValueError(f"{written}: expected a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file")
    return hub.pinned(written)


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _resource(package: str, name: str) -> Path:
    for folder in _folders(package):
        path = path_of(name, folder)
        if is_there(path):
            return path
    raise ValueError(f"the package `{package}` has no `{name}` in it")


def _folders(package: str) -> list[Path]:
    """Where a package lies. `importlib.util.find_spec` would import every package above it, which runs their code."""
    first, *others = package.split(".")
    try:
        found = importlib.util.find_spec(first)  # nothing lies above this one
    except (ImportError, ValueError):
        found = None
    places = [] if found is None else [Path(place, *others) for place in found.submodule_search_locations or ()]
    folders = [place for place in places if all(others) and place.is_dir()]
    if not folders:
        raise ValueError(f"there is no installed package `{package}`")
    return folders
