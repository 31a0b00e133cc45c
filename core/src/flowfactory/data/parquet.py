"""Rows of `.parquet` files, as pandas and datasets write them: images may lie inside. pyarrow comes when it is used."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

BATCH = 64
"""Rows that are held in memory at a time."""

INSIDE = {"bytes", "path"}
"""The fields of an image, a video or a sound as datasets stores it."""

PICTURES = ("image", "images")
"""Columns in which only pictures may lie."""

Keep = Callable[[bytes, str], Path]
"""Gives bytes from inside the file, and the name they had, a file of their own."""


class Unreadable(ValueError):
    """row: from 1, or 0 where it is the file as a whole."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row = row


def read(path: Path, keep: Keep) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Every row's number, from 1, and its cells: what JSON has, and a `Path` for what lies inside. Null is absent.

    Raises:
        Unreadable: it is damaged, no such file, or has a cell that is none of these; without the file's name.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise Unreadable(0, 'pyarrow, which reads .parquet files, is not installed: pip install "flowfactory[parquet]"')
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            name, count = Counter(file.schema_arrow.names).most_common(1)[0] if file.schema_arrow.names else ("", 1)
            if count > 1:
                raise Unreadable(0, f"{count} columns are called `{name}`")
            for batch in file.iter_batches(BATCH):
                for index in range(len(batch)):
                    yield number + 1, _cells(batch, index, number + 1, keep)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise Unreadable(number + 1 if number else 0, f"not Parquet, or damaged: {why}") from error


def _cells(batch: Any, index: int, number: int, keep: Keep) -> dict[str, Any]:
    """A row's cells by the names of their columns."""
    cells = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value = _plain(column[index].as_py(), name, keep)
        except (ValueError, OverflowError, TypeError) as error:
            raise Unreadable(number, f"column `{name}`: {error}") from error
        if value is not None:
            cells[name.strip()] = value
    return cells


def _plain(value: Any, name: str, keep: Keep) -> Any:
    """A cell as JSON would have it, with a `Path` for bytes.

    Raises:
        ValueError: it is something else, or bytes that are no picture where one has to be.
    """
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    if isinstance(value, Mapping) and set(value) == INSIDE and isinstance(value["bytes"], bytes):
        _refuse(value["bytes"], name)
        return keep(value["bytes"], value["path"] or "")
    if isinstance(value, Mapping) and set(value) == INSIDE and value["bytes"] is None:
        return value["path"]
    if isinstance(value, Mapping):
        return {key: _plain(item, "", keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name, keep) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    for kinds, convert in _CONVERTED:
        if isinstance(value, kinds):
            return convert(value)
    raise ValueError(f"values of the type {type(value).__name__} are not read")


_CONVERTED: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    ((datetime, date, time), lambda value: value.isoformat()),
    (timedelta, timedelta.total_seconds),
    (Decimal, float),
    (UUID, str),
)
"""Cells that JSON has not, and what they become."""


def _refuse(data: bytes, name: str) -> None:
    """Raises:
    ValueError: there is nothing, or no picture where one has to be.
    """
    if not data:
        raise ValueError("there are no bytes in it")
    if name in PICTURES:
        from PIL import Image

        try:
            Image.open(io.BytesIO(data)).close()
        except Exception as error:  # Pillow raises many kinds on broken files
            raise ValueError(f"its {len(data)} bytes are no picture") from error
