"""Runs a local plugin file. What lies beside it can be imported, as for any script; it hides nothing installed."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from flowfactory.discovery.entries import Source
from flowfactory.discovery.soundness import broken, cause
from flowfactory.errors import PluginError, shown


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
    if folder not in sys.path:
        sys.path.append(folder)
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise broken(who, f"running it failed: {cause(error)}", "mend it there") from error
    beside = sorted(file for file in _files(set(sys.modules) - before - {name}) if file.is_relative_to(folder))
    content = hashlib.sha256(path.read_bytes())
    for file in beside:
        content.update(file.read_bytes())
    return module, Source(path.name, f"sha256:{content.hexdigest()[:16]}")


def _files(modules: set[str]) -> list[Path]:
    """The source files of some modules that are loaded."""
    files = [vars(sys.modules[name]).get("__file__") for name in modules]
    return [Path(file) for file in files if file and Path(file).is_file()]
