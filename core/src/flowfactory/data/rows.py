"""Rows of the data: `.txt`, `.jsonl`, `.csv` and `.parquet` files. Imports no torch.

How the files are written is told in docs/data.md.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from flowfactory.contracts.types import Row
from flowfactory.data import hub, parquet
from flowfactory.data.store import unpack
from flowfactory.data.text import path_of, read_text, size_of
from flowfactory.errors import BAD_SPEC, RunError, did_you_mean, listed

MEDIA = ("media", "chosen", "rejected")
"""The columns that say what a row shows."""

COLUMNS = ("prompt", "negative_prompt", "image", "images", *MEDIA)
"""What core reads of a row; every further column is for rewards."""

ENDINGS = (".txt", ".jsonl", ".csv", ".parquet")

LONGEST = 1 << 27
"""Characters of the longest cell of a .csv file."""

MANY = 10
"""Rows that cannot be used, of one file, which are told one by one."""

_LINE = re.compile("\r\n|\r|\n")
"""What ends a line. `str.splitlines` would also cut at characters that occur inside of prompts, U+2028 for one."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(RunError):
    """A data file cannot be used; the message names the file and line."""

    code = BAD_SPEC


class AbsentError(DataError):
    """A file that a row names is not there."""

    def __init__(self, text: str, file: Path) -> None:
        super().__init__(text)
        self.file = file


def load(location: str, folder: Path | None = None) -> list[Row]:
    """Every row of a location: of a file, or of files of the hub in the order of their names. See `load_rows`.

    Raises:
        DataError: as `load_rows` does; or files of the hub cannot be fetched.
        RunError: as `load_rows` does.
    """
    try:
        return [row for file in hub.files_of(location) for row in _loaded(location, file, folder)]
    except ValueError as error:
        raise DataError(f"{location}: {error}") from error


def _loaded(location: str, path: Path, folder: Path | None) -> list[Row]:
    """The rows of a file; what they name beside it comes from the hub, too, where it is from there."""
    while True:
        try:
            return load_rows(path, folder)
        except AbsentError as error:
            if not hub.fetched_beside(location, error.file):
                raise


def load_rows(path: Path, folder: Path | None = None) -> list[Row]:
    """Read every row.

    `.txt`: one prompt a line. `.jsonl`: one object a line. `.csv`: a header line, then one row each. `.parquet`: as in
    its columns. Objects and rows have `prompt` and, where wanted, `negative_prompt`, `image` or `images`, `media` or
    `chosen` and `rejected` (paths relative to the file, inside its folder; or, in `.parquet`, what is to be seen
    itself), and any further columns, which rewards may read. Empty lines are skipped.

    Args:
        folder: where what lies inside the file gets files of its own. Without one its paths lead nowhere.

    Raises:
        DataError: naming `file:line` of every row that cannot be used, one a line.
        RunError: the folder cannot be written.
    """
    rows, wrong = list[Row](), list[DataError]()
    try:
        for line, columns in _cells(path, folder):
            try:
                rows.append(_row(path, line, columns))
            except DataError as error:
                wrong.append(error)
    except DataError as error:  # nothing can be read after it
        wrong.append(error)
    if wrong:
        raise _all(path, wrong)
    if not rows:
        raise DataError(f"{path}: no prompts in it")
    return rows


def _all(path: Path, wrong: Sequence[DataError]) -> DataError:
    """One error that says what several do."""
    said = list(map(str, wrong[:MANY]))
    if len(wrong) > MANY:
        said.append(f"{path}: {len(wrong) - MANY} more rows cannot be used")
    text, absent = "\n".join(said), [error for error in wrong if isinstance(error, AbsentError)]
    return AbsentError(text, absent[0].file) if absent else DataError(text)


Cells = tuple[int, Mapping[str, Any] | DataError]
"""A row's line, and its cells by the names of their columns, or why there are none."""


def _cells(path: Path, folder: Path | None) -> Iterator[Cells]:
    """Those of each row."""
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv}
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise DataError(f"{path}: expected a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file")
    try:
        if kind in readers:
            yield from readers[kind](path, read_text(path))
        else:
            size_of(path)
            yield from parquet.read(path, lambda data, name: unpack(data, name, folder) if folder else path / "inside")
    except parquet.Unreadable as error:
        raise DataError(f"{path}:{error.row}: {error}" if error.row else f"{path}: {error}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def misspelt(rows: Iterable[Row]) -> dict[str, str]:
    """Columns core does not read, but whose names are nearly those it does; each with the one that may be meant."""
    written = {name for row in rows for name in row.metadata}
    known = {
        name: did_you_mean(name.strip().lower(), COLUMNS, 0.8).partition("`")[2].partition("`")[0] for name in written
    }
    return {name: meant for name, meant in sorted(known.items()) if meant}


def _read_txt(path: Path, text: str) -> Iterator[Cells]:
    for number, line in enumerate(_LINE.split(text), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _read_jsonl(path: Path, text: str) -> Iterator[Cells]:
    for number, line in enumerate(_LINE.split(text), 1):
        if line.strip():
            yield number, _object(path, number, line)


def _object(path: Path, number: int, line: str) -> Mapping[str, Any] | DataError:
    try:
        columns = json.loads(line)
    except json.JSONDecodeError as error:
        return DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError):
        return DataError(f"{path}:{number}: JSON that is nested too deeply, or has too long a number")
    if not isinstance(columns, dict):
        return DataError(f"{path}:{number}: expected an object, not {type(columns).__name__}")
    return columns


def _read_csv(path: Path, text: str) -> Iterator[Cells]:
    most = csv.field_size_limit(LONGEST)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        name, count = Counter(names).most_common(1)[0] if names else ("", 1)
        if count > 1:
            raise DataError(f"{path}:{reader.line_num}: {count} columns are called `{name}`")
        reader.fieldnames = names
        for columns in reader:
            given = {name: value for name, value in columns.items() if value != ""}
            short = None in columns or None in columns.values()
            wrong = DataError(f"{path}:{reader.line_num}: expected {len(names)} columns")
            yield reader.line_num, wrong if short else given
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error
    finally:
        csv.field_size_limit(most)


def _delimiter(text: str) -> str:
    """A comma; or what spreadsheets write, a semicolon or tab, where only it makes a column `prompt`."""
    head = _LINE.split(text[:10_000], 1)[0]
    names = {mark: [name.strip(' "') for name in head.split(mark)] for mark in ",;\t"}
    return next((mark for mark in ",;\t" if "prompt" in names[mark] and len(names[mark]) > 1), ",")


def _row(path: Path, line: int, columns: Mapping[str, Any] | DataError) -> Row:
    if isinstance(columns, DataError):
        raise columns
    rest = dict(columns)
    prompt = rest.pop("prompt", None)
    negative = rest.pop("negative_prompt", None)
    named = rest.pop("images", None) or rest.pop("image", None) or []
    images = [named] if isinstance(named, str | Path) else named
    media = _media(path, line, {name: rest.pop(name, None) for name in MEDIA}, rest)
    if not isinstance(prompt, str) or not prompt.strip():
        near = next((name for name in rest if did_you_mean(name.strip().lower(), ["prompt"], 0.8)), None)
        others = f"is `{near}` meant?" if near else f"its columns are {listed([*columns][:12])}"
        hint = f"; {others}" if prompt is None else ""
        raise DataError(f"{path}:{line}: expected a `prompt` with text in it{hint}")
    if negative is not None and not isinstance(negative, str):
        raise DataError(f"{path}:{line}: expected `negative_prompt` to be text")
    if _SURROGATE.search(prompt) or _SURROGATE.search(negative or ""):
        raise DataError(f"{path}:{line}: half a character (a lone surrogate), which no text encoder can read")
    if not isinstance(images, list) or not all(isinstance(image, str | Path) for image in images):
        raise DataError(f"{path}:{line}: expected `images` to be a path or a list of paths")
    metadata = {name: _words(value) for name, value in rest.items()}
    return Row(prompt, negative, tuple(_file(path, line, "image", image) for image in images), metadata, media)


def _words(value: Any) -> Any:
    """A cell for rewards: the path of what lay inside a file is text."""
    if isinstance(value, dict):
        return {name: _words(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_words(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _media(path: Path, line: int, columns: Mapping[str, Any], others: Iterable[str]) -> tuple[Path, ...]:
    """What a row shows: nothing, one file, or the chosen and the rejected."""
    written = {name: value for name, value in columns.items() if value is not None}
    if list(written) not in ([], ["media"], ["chosen", "rejected"]):
        names = " and ".join(f"`{name}`" for name in written)
        near = next((name for name in others if did_you_mean(name.strip().lower(), MEDIA, 0.8)), None)
        hint = f"; is `{near}` another of them?" if near else ""
        raise DataError(f"{path}:{line}: expected `media`, or `chosen` and `rejected`, not {names}{hint}")
    for name, value in written.items():
        if not isinstance(value, str | Path):
            raise DataError(f"{path}:{line}: expected `{name}` to be a path")
    return tuple(_file(path, line, name, value) for name, value in written.items())


def _file(path: Path, line: int, what: str, name: str | Path) -> Path:
    """A file by the name that was written: it may be a link into a store that lies elsewhere."""
    if isinstance(name, Path):  # it lay inside
        return name
    if not PurePath(os.path.abspath(path.parent / name)).is_relative_to(os.path.abspath(path.parent)):
        raise DataError(f"{path}:{line}: {what} {name!r} lies outside {path.parent}")
    try:
        file = path_of(name, path.parent)
    except ValueError as error:
        raise DataError(f"{path}:{line}: {what} {name!r}: {error}") from error
    if not file.is_file():
        raise AbsentError(f"{path}:{line}: {what} {name!r} does not exist", file)
    return file
