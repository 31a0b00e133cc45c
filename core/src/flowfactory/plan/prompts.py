"""What the rows of the data say about a spec before anything is loaded. No torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from flowfactory.contracts.specs import Needs
from flowfactory.data.hub import is_remote
from flowfactory.data.rows import DataError, load, misspelt
from flowfactory.data.sources import Data
from flowfactory.errors import DONE, Problem, listed, shown
from flowfactory.spec.kinds import shown_value, sound
from flowfactory.spec.rules.rule import Rule, Where

Address = tuple[str | int, ...]
"""Where something stands in a spec."""


def _data(where: Where, data: Data) -> Iterator[Problem]:
    for file, address in _files(data):
        try:
            rows = _read_rows(file, *_stamp(file))
        except DataError as error:
            yield from (Problem("data", said, where(*address)) for said in str(error).split("\n"))
            continue
        for written, meant in misspelt(rows).items():
            called = file if is_remote(file) else shown(Path(file))
            what = f"{called}: the column `{written}` is for rewards only; core reads `{meant}`"
            yield Problem("column", what, where(*address), code=DONE)


def _enough(where: Where, data: Data, prompts: int) -> Iterator[Problem]:
    parts = sum(source.share for source in data.sources)
    for i, source in enumerate(data.sources):
        most, count = math.ceil(prompts * source.share / parts), len(_rows(source.prompts))
        if 0 < count < most:
            of = f" of source `{source.name}`" if source.name else ""
            what = f"an epoch samples {most} prompts{of} and there are {count}, so some are drawn more than once"
            place = where("data", "source", i, "prompts") if source.name else where("sampling", "prompts")
            yield Problem("few-prompts", what, place, code=DONE)


def _images(where: Where, name: str, wanted: int | None, data: Data) -> Iterator[Problem]:
    for file, address in _files(data):
        wrong = [row for row in _rows(file) if wanted is not None and len(row.images) != wanted]
        if wrong:
            what = f"adapter `{name}` needs {wanted} image in each row; {len(wrong)} rows have another number"
            hint = f"the first is {wrong[0].prompt[:60]!r}; name it in the column `image`"
            yield Problem("images", what, where(*address), hint)


def _media(where: Where, trainer: str, needs: Needs, data: Data) -> Iterator[Problem]:
    columns = {"media": "`media`", "pairs": "`chosen` and `rejected`"}.get(needs.source)
    count = 2 if needs.source == "pairs" else 1
    for file, address in _training(data):
        wrong = [row for row in _rows(file) if len(row.media) != count]
        if columns and wrong:
            learns = f"trainer `{trainer}` learns from files that each row names as {columns}"
            hint = f"the first is {wrong[0].prompt[:60]!r}"
            yield Problem("media", f"{learns}; {len(wrong)} rows do not", where(*address), hint)


def _columns(where: Where, trainer: str, needs: Needs, data: Data) -> Iterator[Problem]:
    for column, known in needs.columns.items():
        for file, address in _training(data):
            instead = sound(_tables(data)[address[:-1]]).get("name")
            cells = [row.metadata.get(column, instead) for row in _rows(file)]
            wrong = [i for i, cell in enumerate(cells) if not _known(cell, known)]
            if wrong:
                first = _rows(file)[wrong[0]]
                has = "nothing" if cells[wrong[0]] is None else shown_value(cells[wrong[0]])
                reads = f"trainer `{trainer}` reads the column `{column}`: one of {listed(sorted(known))}, or a list"
                hint = f"the first is {first.prompt[:60]!r}, which has {has}"
                yield Problem("rows", f"{reads}; {len(wrong)} rows have no such thing", where(*address), hint)


def _known(cell: Any, known: Set[str]) -> bool:
    """Whether a cell is a word that is known, or a list of such."""
    words = cell if isinstance(cell, list) else [cell]
    return bool(words) and all(isinstance(word, str) and word in known for word in words)


NEEDS = ("trainer.name", "trainer.spec.needs")
RULES: tuple[Rule, ...] = (
    (("data",), _data),
    (("data", "sampling.prompts"), _enough),
    (("model.name", "model.spec.images", "data"), _images),
    ((*NEEDS, "data"), _media),
    ((*NEEDS, "data"), _columns),
)


# --- reading -------------------------------------------------------------------------------------------------------


def _tables(data: Data) -> Mapping[Address, Any]:
    """The tables that name files, by where they stand; `[data]` itself where there are no sources."""
    sources = sound(data).get("source")
    return {("data",): data} if sources is None else {("data", "source", i): one for i, one in enumerate(sources)}


def _files(data: Data) -> Iterator[tuple[str, Address]]:
    """Each file with where it is named; one that is unsound in itself hides no other."""
    for address, table in _tables(data).items():
        for key in ("prompts", "eval_prompts"):
            if (file := sound(table).get(key)) is not None:
                yield file, (*address, key)


def _training(data: Data) -> Iterator[tuple[str, Address]]:
    return ((file, address) for file, address in _files(data) if address[-1] == "prompts")


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
