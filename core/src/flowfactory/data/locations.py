"""Files and folders that a spec names. Nothing at all is imported to find a package's resource."""

from __future__ import annotations

import importlib.util
import re
import symtable
from pathlib import Path, PurePath

from flowfactory.data import hub
from flowfactory.data.rows import ENDINGS
from flowfactory.data.text import exists as is_there
from flowfactory.data.text import path_of, read_text
from flowfactory.errors import did_you_mean

_RESOURCE = re.compile(r"([A-Za-z_][\w.]*):(?![/\\])(.+)")
_FUNCTION = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):([A-Za-z_]\w*)")
_EVERYTHING = re.compile(r"^\s*from\s+\S+\s+import\s+\*", re.MULTILINE)
_ADDRESS = re.compile(r"https?://(?:(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?|.*)")
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
        near = _meant(written, exists) or did_you_mean(path.name, _names(path.parent))
        raise ValueError(f"there is no {path}" + (f"; {near}" if near else ""))
    return written


def file_of(written: str) -> Path:
    """The file that `package:examples/x.toml` stands for, if there is none of that name here; others as they are.

    Raises:
        ValueError: there is no such package, or the package has no such file.
    """
    path = Path(written)
    return path if ":" not in written or is_there(path) else Path(locate(written, Path(), exists=True))


def _meant(written: str, exists: bool) -> str:
    """What to write instead of what other programs take as a path."""
    if found := _ADDRESS.fullmatch(written):
        at_hub = f"a file of the hub is written as {hub.FORM}" if exists else ""
        model = f"a model of the hub is written as `{found[1]}`" if found[1] and not exists else ""
        return at_hub or model or "download it first: only the hub is read from elsewhere"
    return "variables of the environment are not put in here, only `~`" if "$" in written else ""


def _remote(written: str, exists: bool) -> str:
    if not exists:
        raise ValueError(f"only data files come from hf://, and {written} is not named as one; a model is `owner/name`")
    if PurePath(written).suffix.lower() not in ENDINGS:
        raise ValueError(f"{written}: expected a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file")
    return hub.pinned(written)


def locate_function(written: str, folder: Path) -> str:
    """What `./file.py:name` or `package.module:name` stands for: the file's path is absolute. Nothing is imported.

    Raises:
        ValueError: it is neither, there is no such file, or nothing of that name in it.
    """
    found = _FUNCTION.fullmatch(written)
    if found is None:
        raise ValueError(f"expected './file.py:function' or 'package.module:function', not {written!r}")
    home, name = found.groups()
    if not home.endswith(".py"):
        return written
    path = path_of(home, folder)
    if not path.is_file():
        near = did_you_mean(path.name, _names(path.parent))
        raise ValueError(f"there is no file {path}" + (f"; {near}" if near else ""))
    known = _defined(path)
    if known is not None and name not in known:
        raise ValueError(f"{path} defines no {name!r}; {did_you_mean(name, known) or 'is it the right file?'}")
    return f"{path}:{name}"


def _defined(path: Path) -> frozenset[str] | None:
    """The names that a module's file gives a value; `None` where only running it would tell."""
    try:
        text = read_text(path)
        table = symtable.symtable(text, str(path), "exec")
    except SyntaxError:  # of another version of Python, maybe
        return None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if _EVERYTHING.search(text):
        return None
    given = [symbol for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()]
    return frozenset(symbol.get_name() for symbol in given)


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
