"""What the rows of the data say about a spec before anything is loaded. No torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowfactory.data.hub import is_remote
from flowfactory.data.rows import DataError, load, misspelt
from flowfactory.data.sources import Data, Prompts
from flowfactory.errors import DONE, Problem, listed, shown
from flowfactory.spec.kinds import shown_value
from flowfactory.spec.rules import Rule, Where
from flowfactory.spec.tables import Component, Sampling

Address = tuple[str | int, ...]
"""Where something stands in a spec."""


def _data(where: Where, data: Data) -> Iterator[Problem]:
    for file, address in _files(data):
        try:
            rows = _read_rows(file, *_stamp(file))
        except DataError as error:
            yield Problem("data", str(error), where(*address))
            continue
        for written, meant in misspelt(rows).items():
            called = file if is_remote(file) else shown(Path(file))
            what = f"{called}: the column `{written}` is for rewards only; core reads `{meant}`"
            yield Problem("column", what, where(*address), code=DONE)


def _enough(where: Where, data: Data, sampling: Sampling) -> Iterator[Problem]:
    parts = sum(source.share for source in data.sources)
    for source, address in _numbered(data):
        most, count = math.ceil(sampling.prompts * source.share / parts), len(_rows(source.prompts))
        if 0 < count < most:
            of = f" of source `{source.name}`" if source.name else ""
            what = f"an epoch samples {most} prompts{of} and there are {count}, so some are drawn more than once"
            place = where(*address, "prompts") if source.name else where("sampling", "prompts")
            yield Problem("few-prompts", what, place, code=DONE)


def _images(where: Where, model: Component, data: Data) -> Iterator[Problem]:
    wanted = model.spec.images
    for file, address in _files(data):
        wrong = [row for row in _rows(file) if wanted is not None and len(row.images) != wanted]
        if wrong:
            what = f"adapter `{model.name}` wants {wanted} image of each row; {len(wrong)} rows have another number"
            hint = f"the first is {wrong[0].prompt[:60]!r}; name it in the column `image`"
            yield Problem("images", what, where(*address), hint)


def _media(where: Where, trainer: Component, data: Data) -> Iterator[Problem]:
    columns = {"media": "`media`", "pairs": "`chosen` and `rejected`"}.get(trainer.spec.needs.source)
    count = 2 if trainer.spec.needs.source == "pairs" else 1
    for source, address in _numbered(data):
        wrong = [row for row in _rows(source.prompts) if len(row.media) != count]
        if columns and wrong:
            learns = f"trainer `{trainer.name}` learns from files that each row names as {columns}"
            hint = f"the first is {wrong[0].prompt[:60]!r}"
            yield Problem("media", f"{learns}; {len(wrong)} rows do not", where(*address, "prompts"), hint)


def _columns(where: Where, trainer: Component, data: Data) -> Iterator[Problem]:
    for column, known in trainer.spec.needs.columns.items():
        for source, address in _numbered(data):
            cells = [row.metadata.get(column, source.name or None) for row in _rows(source.prompts)]
            wrong = [i for i, cell in enumerate(cells) if not _known(cell, known)]
            if wrong:
                first = _rows(source.prompts)[wrong[0]]
                has = "nothing" if cells[wrong[0]] is None else shown_value(cells[wrong[0]])
                reads = (
                    f"trainer `{trainer.name}` reads the column `{column}`: one of {listed(sorted(known))}, or a list"
                )
                hint = f"the first has {has} there: {first.prompt[:60]!r}"
                yield Problem(
                    "rows", f"{reads}; {len(wrong)} rows have no such thing", where(*address, "prompts"), hint
                )


def _known(cell: Any, known: Set[str]) -> bool:
    """Whether a cell is a word that is known, or a list of such."""
    words = cell if isinstance(cell, list) else [cell]
    return bool(words) and all(isinstance(word, str) and word in known for word in words)


RULES: tuple[Rule, ...] = (
    (("data",), _data),
    (("data", "sampling"), _enough),
    (("model", "data"), _images),
    (("trainer", "data"), _media),
    (("trainer", "data"), _columns),
)


# --- reading -------------------------------------------------------------------------------------------------------


def _numbered(data: Data) -> Iterator[tuple[Prompts, Address]]:
    """Each source with where it stands."""
    for i, source in enumerate(data.sources):
        yield source, ("data",) if data.source is None else ("data", "source", i)


def _files(data: Data) -> Iterator[tuple[str, Address]]:
    """Each file with where it is named; one that is unsound in itself hides no other."""
    tables: list[tuple[Any, Address]] = [(data, ("data",))]
    if data.source is not None:
        tables = [(one, ("data", "source", i)) for i, one in enumerate(data.source)]
    for table, address in tables:
        for key in ("prompts", "eval_prompts"):
            with suppress(AttributeError):
                if (file := getattr(table, key)) is not None:
                    yield file, (*address, key)


def _rows(file: str) -> Sequence[Any]:
    """The rows of a file; none where they cannot be read, which is told by another rule."""
    try:
        return _read_rows(file, *_stamp(file))
    except DataError:
        return ()


@functools.lru_cache(maxsize=16)
def _read_rows(file: str, changed: int, size: int) -> Sequence[Any]:
    return load(file)


def _stamp(file: str) -> tuple[int, int]:
    """What tells that a file is still the one that was read."""
    try:
        facts = Path(file).stat()
    except OSError:
        return 0, 0
    return facts.st_mtime_ns, facts.st_size
