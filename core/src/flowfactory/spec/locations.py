"""Files and folders that a spec names. Nothing heavy is imported to find a package's resource."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from flowfactory.errors import did_you_mean

_RESOURCE = re.compile(r"([A-Za-z_][\w.]*):(?![/\\])(.+)")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(written: str, folder: Path, exists: bool) -> str:
    """What a written location stands for: an absolute path, or a hub id as it is.

    Args:
        folder: what relative paths are relative to.
        exists: whether a hub id is out of the question.

    Raises:
        ValueError: there is nothing there.
    """
    if not written:
        raise ValueError("expected a path, not an empty string")
    if not written:
        raise ValueError("expected a path, not an empty string")
    resource = _RESOURCE.fullmatch(written)
    if resource is not None:
        return str(_resource(*resource.groups()))
    path = Path(written).expanduser()
    path = path if path.is_absolute() else folder / path
    if path.exists():
        return str(path.resolve())
    is_path = written.startswith((".", "/", "~")) or _HUB_ID.fullmatch(written) is None
    if exists or is_path:
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise ValueError(f"there is no {path.resolve()}" + (f"; {near}" if near else ""))
    return written


def _resource(package: str, name: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ValueError(f"there is no installed package `{package}`")
    for folder in spec.submodule_search_locations or ():
        path = Path(folder) / name
        if path.exists():
            return path.resolve()
    raise ValueError(f"the package `{package}` has no `{name}` in it")
