"""Data files of the Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION]/PATH`. Its library comes when it is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import attrs

from flowfactory.data.refusals import end_waiting, refusal
from flowfactory.errors import did_you_mean, listed

PREFIX = "hf://"

FORM = "hf://datasets/OWNER/NAME/PATH"

_FORM = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?/([^/].*)", re.ASCII)

_COMMIT = re.compile("[0-9a-f]{40}")


@attrs.frozen
class Remote:
    """Files of a dataset: all those whose path in it matches `pattern`, where `*` is any characters."""

    dataset: str
    revision: str
    pattern: str

    @classmethod
    def of(cls, location: str) -> Remote:
        """What a location names; of the branch `main`, where it does not say.

        Raises:
            ValueError: it has another form.
        """
        found = _FORM.fullmatch(location)
        if found is None:
            raise ValueError(f"expected {FORM}, with @REVISION after the name where one is meant, not {location!r}")
        dataset, revision, pattern = found.groups()
        return cls(dataset, unquote(revision or "main"), pattern)

    def __str__(self) -> str:
        return f"{PREFIX}datasets/{self.dataset}@{self.revision.replace('/', '%2F')}/{self.pattern}"

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit, so that it means the same for ever."""
        return _COMMIT.fullmatch(self.revision) is not None


def is_remote(location: str) -> bool:
    """Whether a location is on the hub, as its form says."""
    return location.startswith(PREFIX)


def pinned(location: str) -> str:
    """The same location at the commit its revision means now, with its files fetched; as it is where it names a commit.

    Raises:
        ValueError: it has another form, or there are no such files, or they cannot be fetched.
    """
    remote = Remote.of(location)
    if remote.is_pinned:
        return location
    folder, _ = _fetched(remote)
    return str(attrs.evolve(remote, revision=folder.name))


def files_of(location: str) -> list[Path]:
    """The files of a location, in the order of their names; those on the hub are fetched once, into its own cache.

    Raises:
        ValueError: as `pinned` does. What is not on the hub is not looked at.
    """
    return _fetched(Remote.of(location))[1] if is_remote(location) else [Path(location)]


def fetched_beside(location: str, file: Path) -> bool:
    """Fetch a file that one of a location names, with all of its kind in its folder; whether it is there then.

    Raises:
        ValueError: they cannot be fetched.
    """
    if not is_remote(location):
        return False
    remote = Remote.of(location)
    folder = _fetched(remote)[0]
    name = PurePosixPath(file.relative_to(folder).as_posix())
    _asked(lambda: _snapshot(remote, str(name.with_name(f"*{name.suffix}"))), remote)
    return file.is_file()


def _fetched(remote: Remote) -> tuple[Path, list[Path]]:
    """The folder of a commit, and the files in it that are meant. What was fetched is found without a network."""
    folder = _asked(lambda: _snapshot(remote, remote.pattern), remote).resolve()
    there = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    matching = sorted(name for name in there if fnmatchcase(name, remote.pattern))
    if not matching:
        raise ValueError(f"the dataset {remote.dataset} has no {remote.pattern}{_hint(remote, list(there))}")
    return folder, [there[name] for name in matching]


def _snapshot(remote: Remote, pattern: str) -> Path:
    from huggingface_hub import snapshot_download

    end_waiting()
    return Path(
        snapshot_download(remote.dataset, repo_type="dataset", revision=remote.revision, allow_patterns=pattern)
    )


def _hint(remote: Remote, there: list[str]) -> str:
    """What files a dataset has, as far as the hub says, or else this disk."""
    from huggingface_hub import HfApi

    try:
        names = list(HfApi().list_repo_files(remote.dataset, repo_type="dataset", revision=remote.revision))
    except Exception:  # it is said already that they are not there
        names = there
    near = did_you_mean(remote.pattern, names)
    return f"; {near}" if near else f" (there is: {listed(names[:8])})" if names else " on this disk"


def _asked(ask: Callable[[], Path], remote: Remote) -> Path:
    """What the hub's library gives.

    Raises:
        ValueError: in one line, what it says.
    """
    try:
        return ask()
    except Exception as error:  # it raises its own kinds, those of its network library, and the system's
        refused = refusal(error, f"the dataset {remote.dataset}", remote.revision)
        words = refused or " ".join(str(error).split())[:400] or type(error).__name__
        raise ValueError(f"{remote} cannot be fetched: {words}") from error
