"""`[data]`: where prompts come from, and how much of an epoch from where. Imports no torch."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from flowfactory.contracts.key import NAME, Location, key
from flowfactory.contracts.types import Row
from flowfactory.data.rows import load


@attrs.frozen(kw_only=True)
class DataSource:
    """`[[data.source]]`: one of several sources of prompts."""

    name: str = key("Name in metrics and in `[[reward]] sources`.", pattern=NAME)
    prompts: Location = key("Training prompts, as in `[data]`.", exists=True)
    eval_prompts: Location | None = key("Held-out prompts for evaluation.", default=None, exists=True)
    share: int = key(
        "Parts of an epoch's prompts that come from this source: 3, beside a source with 1, means three quarters.",
        default=1,
        ge=1,
        le=1000,
    )


@attrs.frozen
class Prompts:
    """One source of prompts, whichever way it was written; without a name there is no other."""

    prompts: str
    eval_prompts: str | None
    name: str = ""
    share: int = 1


@attrs.frozen(kw_only=True)
class Data:
    """`[data]`"""

    prompts: Location | None = key(
        "Training prompts: .txt (one a line), .jsonl, .csv or .parquet, here or at `hf://datasets/…`; see Data. Needed "
        "unless there are sources.",
        default=None,
        exists=True,
    )
    eval_prompts: Location | None = key("Held-out prompts for evaluation.", default=None, exists=True)
    source: tuple[DataSource, ...] | None = key(
        "Several sources of prompts, in place of `prompts` and `eval_prompts`: see `[[data.source]]`.",
        default=None,
        min_length=1,
    )

    @property
    def sources(self) -> tuple[Prompts, ...]:
        """All of them; none where a spec lacks them, which is refused."""
        if self.source is not None:
            return tuple(Prompts(one.prompts, one.eval_prompts, one.name, one.share) for one in self.source)
        return () if self.prompts is None else (Prompts(self.prompts, self.eval_prompts),)

    @property
    def held_out(self) -> tuple[str, ...]:
        """The names of the sources with prompts for evaluation; `""` is the name of what has none."""
        if self.source is None:
            return () if self.eval_prompts is None else ("",)
        return tuple(source.name for source in self.source if source.eval_prompts is not None)


def load_training(data: Data, folder: Path | None = None) -> list[Row]:
    """The training rows; those of one source lie together. Raises as `load` does; `folder` is as there."""
    return [row for source in data.sources for row in _of(source, source.prompts, folder)]


def load_held_out(data: Data, folder: Path | None = None) -> list[Row]:
    """The held-out rows, one of each source in turn, so that the first few are of all of them."""
    rows = [_of(source, source.eval_prompts, folder) for source in data.sources if source.eval_prompts is not None]
    longest = max(map(len, rows), default=0)
    return [own[number] for number in range(longest) for own in rows if number < len(own)]


def _of(source: Prompts, file: str, folder: Path | None) -> list[Row]:
    rows = load(file, folder)
    return [attrs.evolve(row, source=source.name) for row in rows] if source.name else rows


# --- shares --------------------------------------------------------------------------------------------------------


@attrs.frozen
class Pool:
    """The rows of one source: how many, and how many parts of each epoch they get. Without a name there is no other."""

    rows: int
    share: int = 1
    name: str = ""


def pools(data: Data, rows: Sequence[Row]) -> tuple[Pool, ...]:
    """The sources as they are drawn from, in the order of their rows."""
    counts, sources = counted(rows), data.sources
    return tuple(Pool(counts[one.name], one.share, one.name if len(sources) > 1 else "") for one in sources)


def counted(rows: Iterable[Row]) -> Mapping[str, int]:
    """How many rows there are of each source, by its name."""
    return Counter(row.source for row in rows)


@functools.cache
def turns(shares: tuple[int, ...]) -> tuple[int, ...]:
    """Whose turn each prompt is, over one period: of the first `k` turns everyone has a share of `k`, up or down to a
    whole number.

    Somebody's turn `j` may come when the share reaches `j`, and has to be over when it reaches `j + 1`. Of those whose
    turn may come, the one takes it whose is over first: this always succeeds, as for tasks with deadlines on one
    machine.
    """
    parts = [share // math.gcd(*shares) for share in shares]
    whole, had, found = sum(parts), [0] * len(parts), list[int]()
    for turn in range(whole):
        ready = [i for i, part in enumerate(parts) if had[i] * whole < (turn + 1) * part]
        found.append(min(ready, key=lambda i: -(-(had[i] + 1) * whole // parts[i])))
        had[found[-1]] += 1
    return tuple(found)


def before(shares: tuple[int, ...], turn: int) -> list[int]:
    """How many turns everyone has had before a turn, counted from 0."""
    period = turns(shares)
    times, rest = divmod(turn, len(period))
    return [period.count(i) * times + period[:rest].count(i) for i in range(len(shares))]


def drawn(shares: tuple[int, ...], epochs: range, prompts: int) -> list[int]:
    """How many prompts of some successive epochs, counted from 1, come from each source."""
    first, last = (before(shares, (epoch - 1) * prompts) for epoch in (epochs.start, epochs.stop))
    return [b - a for a, b in zip(first, last, strict=True)]
