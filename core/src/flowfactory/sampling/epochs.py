"""The epoch plan: which prompt is sampled where, and for which update. A pure function; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count, islice

import attrs

from flowfactory.contracts.seeds import seed_of
from flowfactory.contracts.specs import StochasticSpec
from flowfactory.data.sources import Pool, before, turns
from flowfactory.spec.tables import Spec
from flowfactory.spec.window import grown, stochastic_steps


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


def plan_epoch(seed: int, epoch: int, pools: Sequence[Pool], prompts: int, updates: int) -> Share:
    """The groups of each update of `epoch` (counted from 1), over all processes.

    Sources take turns as their shares say. Prompts are drawn without replacement: a source is shuffled anew each time
    it is used up.
    """
    groups = _groups(seed, epoch, pools, prompts)
    size = prompts // updates
    return tuple(tuple(groups[u * size : (u + 1) * size]) for u in range(updates))


def rows_used(seed: int, epochs: range, pools: Sequence[Pool], prompts: int, refill: int = 0) -> list[int]:
    """The rows that some successive epochs may draw, each once, in the order in which they are first needed.

    Args:
        refill: in how many further rounds of an epoch groups may be replaced.
    """
    drawn = islice(_order(seed, pools, (epochs.start - 1) * prompts), len(epochs) * prompts)
    again = (
        refilled(seed, epoch, pools, group, number).row
        for epoch in (epochs if refill else ())
        for groups in [_groups(seed, epoch, pools, prompts)]
        for number in range(1, refill + 1)
        for group in groups
    )
    found, everything = dict[int, None](), sum(pool.rows for pool in pools)
    for row in chain(drawn, again):
        found[row] = None
        if len(found) == everything:
            break
    return list(found)


def share(plan: Share, team: int, teams: int) -> Share:
    """What team `team` of `teams` does of `plan`. Whole groups; the same members of each update for any number."""
    return tuple(update[len(update) * team // teams : len(update) * (team + 1) // teams] for update in plan)


def epoch_steps(spec: Spec, epoch: int, slot: int) -> tuple[int, ...]:
    """The stochastic steps of a group of an epoch, the same on every process."""
    scheduler = spec.scheduler.spec
    if not isinstance(scheduler, StochasticSpec):
        return ()
    return stochastic_steps(scheduler.window, spec.sampling.steps, spec.run.seed, epoch, slot)


def trained_steps(spec: Spec, epoch: int, slot: int) -> tuple[int, ...]:
    """The steps that what a member of a group gives is trained at, each as often as it is."""
    steps, branches = epoch_steps(spec, epoch, slot), spec.trainer.spec.needs.branches
    return steps if branches is None else grown(branches, steps, spec.sampling.steps).steps


def refilled(seed: int, epoch: int, pools: Sequence[Pool], group: Group, number: int) -> Group:
    """The group that takes a group's place in round `number` of an epoch; its row is drawn among all of the source."""
    first = 0
    for pool in pools:
        if group.row < first + pool.rows:
            row = first + seed_of(seed, "refill", epoch, number, group.slot) % pool.rows
            return Group(group.slot, row, number)
        first += pool.rows
    raise ValueError(f"there is no row {group.row} among {first}")


def _groups(seed: int, epoch: int, pools: Sequence[Pool], prompts: int) -> list[Group]:
    rows = islice(_order(seed, pools, (epoch - 1) * prompts), prompts)
    return [Group(slot, row) for slot, row in enumerate(rows)]


def _order(seed: int, pools: Sequence[Pool], start: int) -> Iterator[int]:
    """Data rows from position `start` of the endless sequence of turns."""
    shares = tuple(pool.share for pool in pools)
    period, done = turns(shares), before(shares, start)
    firsts = [sum(pool.rows for pool in pools[:i]) for i in range(len(pools))]
    own = [_passes(seed, *one) for one in zip(pools, firsts, done, strict=True)]
    return (next(own[period[turn % len(period)]]) for turn in count(start))


def _passes(seed: int, pool: Pool, first: int, start: int) -> Iterator[int]:
    """The rows of a source, the first of which is `first`, from position `start` of its endless, shuffled passes."""
    name = (pool.name,) if pool.name else ()
    while True:
        visit, position = divmod(start, pool.rows)
        shuffled = sorted(range(pool.rows), key=lambda row: seed_of(seed, "order", visit, row, *name))
        yield from (first + row for row in shuffled[position:])
        start = (visit + 1) * pool.rows
