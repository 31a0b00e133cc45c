"""Environments that scorers run in: built once, complete or not there at all, shared by all runs. Imports no torch.

A folder is named by what its environment is made from. Whoever builds holds its lock, and builds in a new folder
inside; the last file that is written, `complete`, says which of these is whole. What is not is removed: by who failed,
or by whoever comes next.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout
from flowfactory import user_folder

from flowfactory_plugin_isolated import Scorer

log = logging.getLogger("flowfactory")

HOST = "flowfactory-scorer"
COMPLETE = "complete"
WORDS = 3000
"""Most characters of an installer's words that a message repeats, from the end; all of them are in the log."""
FOREIGN = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")
"""Variables that would lead Python into another environment."""
_NESTED = re.compile(r"\s*(?:-r|-c|--requirement|--constraint)[\s=]+(\S+)")

Tell = Callable[[str], object]


class BuildError(RuntimeError):
    """An environment cannot be built; nothing is left of it."""


def python_of(scorer: Scorer, tell: Tell) -> Path:
    """The interpreter of a scorer's environment, which is built first if it is not there.

    Args:
        tell: is given a line when it takes a while.

    Raises:
        BuildError: in the installer's own words.
    """
    if scorer.environment is not None:
        return Path(scorer.environment) / "bin" / "python"
    folder = folder_of(scorer)
    python = _found(folder)
    if python is None:
        with _building(folder, scorer, tell):
            python = _found(folder) or _build(folder, scorer, tell)
    return python


def folder_of(scorer: Scorer) -> Path:
    """Where the environment of a scorer is, or will be."""
    requirements = scorer.requirements
    made_from = {
        "host": _digest(_host_files()),
        "requirements": list(_lines(Path(requirements))) if isinstance(requirements, str) else list(requirements),
        "python": scorer.python or _own_version(),
        "platform": [sys.platform, platform.machine()],
    }
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:24]
    return home() / name


def home() -> Path:
    """The folder of all environments."""
    return user_folder().absolute() / "environments"


def host_wheel() -> Path:
    """The wheel of the host that runs in every environment: of what is installed here, so that the two agree."""
    version, files = importlib.metadata.version(HOST), _host_files()
    folder = home() / f"host-{_digest(files)[:24]}"
    wheel = folder / f"{HOST.replace('-', '_')}-{version}-py3-none-any.whl"
    if not wheel.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / uuid4().hex
        try:
            _write_wheel(partial, wheel.name, files)
            partial.replace(wheel)
        finally:
            partial.unlink(missing_ok=True)
    return wheel


def own_variables() -> dict[str, str]:
    """The environment variables, without those that belong to this process's own environment or to its part in a run.

    Libraries in another process would take the latter for an order to join the run.
    """
    ours = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "ROLE_", "GROUP_")
    own = (*FOREIGN, "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in own and not name.startswith(ours)}


# --- building ----------------------------------------------------------------------------------------------------


def _found(folder: Path) -> Path | None:
    """The interpreter of an environment that is whole, and whose Python is still there."""
    try:
        python = folder / (folder / COMPLETE).read_text(encoding="utf-8") / "bin" / "python"
    except (FileNotFoundError, NotADirectoryError):
        return None
    return python if python.exists() else None


@contextmanager
def _building(folder: Path, scorer: Scorer, tell: Tell) -> Iterator[None]:
    """While active, nobody else builds this environment. What the system refuses is said in words."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"another process is building the environment of {scorer.score}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise BuildError(f"the environment of {scorer.score} cannot be built in {folder}: {error}") from error


def _build(folder: Path, scorer: Scorer, tell: Tell) -> Path:
    uv, began = shutil.which("uv"), time.monotonic()
    tell(f"building the environment of {scorer.score} with {'uv' if uv else 'venv and pip'}, once")
    shutil.rmtree(folder, ignore_errors=True)
    new = folder / uuid4().hex  # what a killed process has left may still be written to
    try:
        folder.mkdir()
        for command in _commands(new, scorer, uv):
            _run(command, scorer)
        partial = new / COMPLETE
        partial.write_text(new.name, encoding="utf-8")
        partial.replace(folder / COMPLETE)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    tell(f"built it in {time.monotonic() - began:.0f} s; it is kept in {new}")
    return new / "bin" / "python"


def _commands(folder: Path, scorer: Scorer, uv: str | None) -> Iterator[Sequence[str]]:
    """What makes an environment, one command after the other."""
    python, version = str(folder / "bin" / "python"), scorer.python
    other = version is not None and version != _own_version()
    requirements = scorer.requirements
    wanted = ["-r", requirements] if isinstance(requirements, str) else requirements
    if uv:
        yield [uv, "venv", "--quiet", "--python", version if other and version else sys.executable, str(folder)]
        yield [uv, "pip", "install", "--quiet", "--python", python, str(host_wheel()), *wanted]
        return
    name = f"python{version}"
    base = shutil.which(name) if other else sys.executable
    if base is None:
        what = f"{scorer.score} wants Python {version}, and there is no {name} here"
        raise BuildError(f"{what}; install it, or uv, which fetches it")
    yield [base, "-m", "venv", str(folder)]
    install = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    yield [*install, str(host_wheel()), *wanted]


def _run(command: Sequence[str], scorer: Scorer) -> None:
    """Run a command; it ends with whoever waits for it.

    Raises:
        BuildError: with its own words.
    """
    requirements = scorer.requirements
    here = Path(requirements).parent if isinstance(requirements, str) else home()
    variables = {**own_variables(), "NO_COLOR": "1", "PIP_NO_COLOR": "1"}
    process = subprocess.Popen(
        command, cwd=here, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said = process.communicate()[0].decode("utf-8", "replace").strip()
    finally:
        process.kill()
        process.wait()
    log.info("%s\n%s", " ".join(command), said)
    if process.returncode:
        what = f"the environment of {scorer.score} cannot be built, and nothing is kept of it: `{' '.join(command)}`"
        raise BuildError(f"{what} ended with exit code {process.returncode} and said:\n{tail(said, WORDS)}")


def tail(text: str, most: int) -> str:
    """The last lines of a text, with at most so many characters; of a line that is longer, its end."""
    if len(text) <= most:
        return text
    end = text[-most - 1 :]
    return end.partition("\n")[2] or end[1:]


# --- what an environment is made from ----------------------------------------------------------------------------


def _own_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _lines(file: Path) -> Iterator[str]:
    """The lines of a requirements file, and of those that it names."""
    for line in file.read_text(encoding="utf-8").splitlines():
        yield line
        nested = _NESTED.match(line)
        if nested and (other := file.parent / nested[1]).is_file() and other != file:
            yield from _lines(other)


def _host_files() -> dict[str, bytes]:
    """The files of the host's package, by their names in its wheel."""
    spec = importlib.util.find_spec(HOST.replace("-", "_"))
    assert spec is not None, f"{HOST} is a dependency"
    (place,) = map(Path, spec.submodule_search_locations or ())
    return {f"{place.name}/{path.name}": path.read_bytes() for path in sorted(place.iterdir()) if path.is_file()}


def _digest(files: dict[str, bytes]) -> str:
    whole = hashlib.sha256()
    for name, content in files.items():
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()


def _write_wheel(path: Path, name: str, files: dict[str, bytes]) -> None:
    """A wheel of the host's package, which may be installed here in any way."""
    metadata = importlib.metadata.distribution(HOST).read_text("METADATA")
    assert metadata is not None, "every installed distribution has it"
    about = "-".join(name.split("-")[:2]) + ".dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: flowfactory\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    whole = {**files, f"{about}/METADATA": metadata.encode(), f"{about}/WHEEL": tags.encode()}
    record = "".join(f"{name},{_hash(content)},{len(content)}\n" for name, content in whole.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file, content in {**whole, f"{about}/RECORD": f"{record}{about}/RECORD,,\n".encode()}.items():
            wheel.writestr(file, content)


def _hash(content: bytes) -> str:
    return "sha256=" + urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
