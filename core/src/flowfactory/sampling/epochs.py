"""The epoch plan: which prompt is sampled where, and for which update. A pure function; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import attrs

from flowfactory.contracts.seeds import seed_of


@attrs.frozen
class Group:
    """All samples of one prompt in one epoch: `slot` numbers the epoch's groups, `row` is the line of the data.

    round: 0, or in which further round it took the place of a group that taught nothing.
    """

    slot: int
    row: int
    round: int = 0


Share = tuple[tuple[Group, ...], ...]
"""For each update of an epoch, the groups one process samples, scores and trains on."""


def plan_epoch(seed: int, epoch: int, rows: int, prompts: int, updates: int) -> Share:
    """The groups of each update of `epoch` (counted from 1), over all processes.

    Prompts are drawn without replacement: the data is shuffled anew each time it is used up.
    """
    order = islice(_order(seed, rows, (epoch - 1) * prompts), prompts)
    groups = [Group(slot, row) for slot, row in enumerate(order)]
    size = prompts // updates
    return tuple(tuple(groups[u * size : (u + 1) * size]) for u in range(updates))


def rows_used(seed: int, epochs: range, rows: int, prompts: int, refill: int = 0) -> list[int]:
    """The rows that some successive epochs may draw, each once, in the order in which they are first needed.

    Args:
        refill: in how many further rounds of an epoch groups may be replaced.
    """
    drawn = islice(_order(seed, rows, (epochs.start - 1) * prompts), len(epochs) * prompts)
    again = (
        refilled(seed, epoch, rows, Group(slot, 0), number).row
        for epoch in epochs
        for number in range(1, refill + 1)
        for slot in range(prompts)
    )
    found: dict[int, None] = {}
    for row in chain(drawn, again):
        found[row] = None
        if len(found) == rows:
            break
    return list(found)


def share(plan: Share, rank: int, world: int) -> Share:
    """What process `rank` of `world` does of `plan`. Whole groups; the same members of each update for any `world`."""
    return tuple(update[len(update) * rank // world : len(update) * (rank + 1) // world] for update in plan)


def refilled(seed: int, epoch: int, rows: int, group: Group, number: int) -> Group:
    """The group that takes a group's place in round `number` of an epoch; its row is drawn among all of them."""
    return Group(group.slot, seed_of(seed, "refill", epoch, number, group.slot) % rows, number)


def _order(seed: int, rows: int, start: int) -> Iterator[int]:
    """Data rows from position `start` of the endless sequence of shuffled passes."""
    while True:
        visit, first = divmod(start, rows)
        shuffled = sorted(range(rows), key=lambda row: seed_of(seed, "order", visit, row))
        yield from shuffled[first:]
        start = (visit + 1) * rows
