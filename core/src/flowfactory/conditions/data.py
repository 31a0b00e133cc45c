"""Prompts from `.txt`, `.jsonl` and `.csv` files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowfactory.contracts.types import Row
from flowfactory.errors import BAD_SPEC, RunError


class DataError(RunError):
    """A data file cannot be used; the message names the file and line."""

    code = BAD_SPEC


def load_rows(path: Path) -> list[Row]:
    """Read every row.

    `.txt`: one prompt a line. `.jsonl`: one object a line. `.csv`: a header line, then one row each. Objects and rows
    have `prompt` and, where wanted, `negative_prompt`, `image` or `images` (paths relative to the file, inside its
    folder), and any further columns, which rewards may read. Empty lines are skipped.

    Raises:
        DataError: naming `file:line` of the first row that cannot be used.
    """
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a .txt, .jsonl or .csv file")
    try:
        rows = [_row(path, line, columns) for line, columns in readers[path.suffix](path)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error
    if not rows:
        raise DataError(f"{path}: no prompts in it")
    return rows


def _read_txt(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(columns, dict):
            raise DataError(f"{path}:{number}: expected an object, not {type(columns).__name__}")
        yield number, columns


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for columns in reader:
                if None in columns or None in columns.values():
                    raise DataError(f"{path}:{reader.line_num}: expected {len(reader.fieldnames or ())} columns")
                yield reader.line_num, {name: value for name, value in columns.items() if value != ""}
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _row(path: Path, line: int, columns: Mapping[str, Any]) -> Row:
    rest = dict(columns)
    prompt = rest.pop("prompt", None)
    negative = rest.pop("negative_prompt", None)
    named = rest.pop("images", None) or rest.pop("image", None) or []
    images = [named] if isinstance(named, str) else named
    if not isinstance(prompt, str) or not prompt:
        raise DataError(f"{path}:{line}: expected a `prompt` with text in it")
    if negative is not None and not isinstance(negative, str):
        raise DataError(f"{path}:{line}: expected `negative_prompt` to be text")
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError(f"{path}:{line}: expected `images` to be a path or a list of paths")
    return Row(prompt, negative, tuple(_image(path, line, image) for image in images), rest)


def _image(path: Path, line: int, name: str) -> Path:
    folder = path.parent.resolve()
    image = (folder / name).resolve()
    if not image.is_relative_to(folder):
        raise DataError(f"{path}:{line}: image {name!r} lies outside {folder}")
    if not image.is_file():
        raise DataError(f"{path}:{line}: image {name!r} does not exist")
    return image
