"""Rows of the data: `.txt`, `.jsonl` and `.csv` files. Imports no torch.

How the files are written is told in docs/data.md.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from flowfactory.contracts.types import Row
from flowfactory.data.text import path_of, read_text
from flowfactory.errors import BAD_SPEC, RunError, did_you_mean

MEDIA = ("media", "chosen", "rejected")
"""The columns that say what a row shows."""

COLUMNS = ("prompt", "negative_prompt", "image", "images", *MEDIA)
"""What core reads of a row; every further column is for rewards."""

ENDINGS = (".txt", ".jsonl", ".csv")

LONGEST = 1 << 27
"""Characters of the longest cell of a .csv file."""

_LINE = re.compile("\r\n|\r|\n")
"""What ends a line. `str.splitlines` would also cut at characters that occur inside of prompts, U+2028 for one."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class DataError(RunError):
    """A data file cannot be used; the message names the file and line."""

    code = BAD_SPEC


def load_rows(path: Path) -> list[Row]:
    """Read every row.

    `.txt`: one prompt a line. `.jsonl`: one object a line. `.csv`: a header line, then one row each. Objects and rows
    have `prompt` and, where wanted, `negative_prompt`, `image` or `images`, `media` or `chosen` and `rejected` (paths
    relative to the file, inside its folder), and any further columns, which rewards may read. Empty lines are skipped.

    Raises:
        DataError: naming `file:line` of the first row that cannot be used.
    """
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: expected a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file")
    try:
        text = read_text(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    rows = [_row(path, line, columns) for line, columns in readers[path.suffix.lower()](path, text)]
    if not rows:
        raise DataError(f"{path}: no prompts in it")
    return rows


def misspelt(rows: Iterable[Row]) -> dict[str, str]:
    """Columns core does not read, but whose names are nearly those it does; each with the one that may be meant."""
    written = {name for row in rows for name in row.metadata}
    known = {
        name: did_you_mean(name.strip().lower(), COLUMNS, 0.8).partition("`")[2].partition("`")[0] for name in written
    }
    return {name: meant for name, meant in sorted(known.items()) if meant}


def _read_txt(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_LINE.split(text), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_LINE.split(text), 1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        except (RecursionError, ValueError) as error:
            raise DataError(f"{path}:{number}: JSON that is nested too deeply, or has too long a number") from error
        if not isinstance(columns, dict):
            raise DataError(f"{path}:{number}: expected an object, not {type(columns).__name__}")
        yield number, columns


def _read_csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    most = csv.field_size_limit(LONGEST)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        name, count = Counter(names).most_common(1)[0] if names else ("", 1)
        if count > 1:
            raise DataError(f"{path}:{reader.line_num}: {count} columns are called `{name}`")
        reader.fieldnames = names
        for columns in reader:
            if None in columns or None in columns.values():
                raise DataError(f"{path}:{reader.line_num}: expected {len(names)} columns")
            yield reader.line_num, {name: value for name, value in columns.items() if value != ""}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error
    finally:
        csv.field_size_limit(most)


def _delimiter(text: str) -> str:
    """A comma; or what spreadsheets write, a semicolon or tab, where only it makes a column `prompt`."""
    head = _LINE.split(text[:10_000], 1)[0]
    names = {mark: [name.strip(' "') for name in head.split(mark)] for mark in ",;\t"}
    return next((mark for mark in ",;\t" if "prompt" in names[mark] and len(names[mark]) > 1), ",")


def _row(path: Path, line: int, columns: Mapping[str, Any]) -> Row:
    rest = dict(columns)
    prompt = rest.pop("prompt", None)
    negative = rest.pop("negative_prompt", None)
    named = rest.pop("images", None) or rest.pop("image", None) or []
    images = [named] if isinstance(named, str) else named
    media = _media(path, line, {name: rest.pop(name, None) for name in MEDIA}, rest)
    if not isinstance(prompt, str) or not prompt.strip():
        near = next((name for name in rest if did_you_mean(name.strip().lower(), ["prompt"], 0.8)), None)
        hint = f"; is `{near}` meant?" if prompt is None and near else ""
        raise DataError(f"{path}:{line}: expected a `prompt` with text in it{hint}")
    if negative is not None and not isinstance(negative, str):
        raise DataError(f"{path}:{line}: expected `negative_prompt` to be text")
    if _SURROGATE.search(prompt) or _SURROGATE.search(negative or ""):
        raise DataError(f"{path}:{line}: half a character (a lone surrogate), which no text encoder can read")
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError(f"{path}:{line}: expected `images` to be a path or a list of paths")
    return Row(prompt, negative, tuple(_file(path, line, "image", image) for image in images), rest, media)


def _media(path: Path, line: int, columns: Mapping[str, Any], others: Iterable[str]) -> tuple[Path, ...]:
    """What a row shows: nothing, one file, or the chosen and the rejected."""
    written = {name: value for name, value in columns.items() if value is not None}
    if list(written) not in ([], ["media"], ["chosen", "rejected"]):
        names = " and ".join(f"`{name}`" for name in written)
        near = next((name for name in others if did_you_mean(name.strip().lower(), MEDIA, 0.8)), None)
        hint = f"; is `{near}` another of them?" if near else ""
        raise DataError(f"{path}:{line}: expected `media`, or `chosen` and `rejected`, not {names}{hint}")
    for name, value in written.items():
        if not isinstance(value, str):
            raise DataError(f"{path}:{line}: expected `{name}` to be a path")
    return tuple(_file(path, line, name, value) for name, value in written.items())


def _file(path: Path, line: int, what: str, name: str) -> Path:
    """A file by the name that was written: it may be a link into a store that lies elsewhere."""
    if not PurePath(os.path.abspath(path.parent / name)).is_relative_to(os.path.abspath(path.parent)):
        raise DataError(f"{path}:{line}: {what} {name!r} lies outside {path.parent}")
    try:
        file = path_of(name, path.parent)
    except ValueError as error:
        raise DataError(f"{path}:{line}: {what} {name!r}: {error}") from error
    if not file.is_file():
        raise DataError(f"{path}:{line}: {what} {name!r} does not exist")
    return file
