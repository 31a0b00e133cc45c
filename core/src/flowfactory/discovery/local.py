"""Runs a local plugin file. What lies beside it can be imported, as for any script; it hides nothing installed."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from flowfactory.calling import calling
from flowfactory.discovery.entries import Source
from flowfactory.discovery.soundness import broken
from flowfactory.errors import PluginError, cause, shown

_FOLDERS: list[Path] = []
"""Where local files were run, the last one first."""


def module_name(path: Path) -> str:
    """What the module of a file is called."""
    return f"flowfactory_local_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def run_file(path: Path, who: str) -> tuple[ModuleType, Source]:
    """The module of a file, and its source: a hash over the file and what it imported from beside it.

    Raises:
        PluginError: there is no such file, or running it failed.
    """
    if not path.is_file():
        raise PluginError("plugin-file-missing", f"there is no file {shown(path)}")
    name, folder = module_name(path), str(path.parent)
    _come_first(path.parent)
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with calling(who, environment=False):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise broken(who, f"running it failed: {cause(error)}", "mend it there") from error
    beside = sorted(f for f in _files(set(sys.modules) - before - {name}).values() if f.is_relative_to(folder))
    content = hashlib.sha256(path.read_bytes())
    for file in beside:
        content.update(file.read_bytes())
    return module, Source(path.name, f"sha256:{content.hexdigest()[:16]}")


def _come_first(folder: Path) -> None:
    """Let what lies in a folder be found before what lies, under the same names, beside other local files."""
    others, names = [other for other in _FOLDERS if other != folder], {path.stem for path in folder.iterdir()}
    for name, file in _files({name for name in sys.modules if name.partition(".")[0] in names}).items():
        if any(file.is_relative_to(other) for other in others):
            del sys.modules[name]
    _FOLDERS[:] = [folder, *others]
    sys.path[:] = [place for place in sys.path if Path(place) not in _FOLDERS] + [str(each) for each in _FOLDERS]


def _files(modules: set[str]) -> dict[str, Path]:
    """The source files of some modules that are loaded."""
    found = {name: vars(module).get("__file__") for name in modules if (module := sys.modules[name]) is not None}
    return {name: Path(file) for name, file in found.items() if file and Path(file).is_file()}
