"""The epoch plan: who samples what, for which update."""

from collections import Counter

import pytest
from flowfactory.data.sources import Pool, drawn
from flowfactory.sampling.epochs import Group, plan_epoch, refilled, rows_used, share

SEVERAL = (Pool(7, 1, "few"), Pool(40, 3, "many"), Pool(12, 2, "other"))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_members_of_each_update_do_not_depend_on_the_world_size(world: int) -> None:
    plan = plan_epoch(seed=1, epoch=3, pools=[Pool(20)], prompts=16, updates=2)
    shares = [share(plan, rank, world) for rank in range(world)]
    for update in range(2):
        together = [group for one in shares for group in one[update]]
        assert together == list(plan[update])
        assert len({len(one[update]) for one in shares}) == 1


def test_every_prompt_is_used_once_before_any_is_used_twice() -> None:
    rows, prompts = 12, 5
    used = [
        group.row
        for epoch in range(1, 13)
        for update in plan_epoch(7, epoch, [Pool(rows)], prompts, 1)
        for group in update
    ]
    for visit in range(len(used) // rows):
        assert sorted(used[visit * rows : (visit + 1) * rows]) == list(range(rows))


def test_passes_are_shuffled_differently() -> None:
    first, second = (plan_epoch(0, epoch, [Pool(30)], 30, 1)[0] for epoch in (1, 2))
    assert [g.row for g in first] != [g.row for g in second]
    assert [g.row for g in first] != [g.row for g in plan_epoch(1, 1, [Pool(30)], 30, 1)[0]]


def test_slots_number_the_groups_even_where_prompts_repeat() -> None:
    groups = [g for update in plan_epoch(0, 1, [Pool(3)], prompts=8, updates=2) for g in update]
    assert [g.slot for g in groups] == list(range(8))
    assert set(Counter(g.row for g in groups).values()) <= {2, 3}


def source_of(row: int) -> int:
    """Which of `SEVERAL` a row is of."""
    return 0 if row < 7 else 1 if row < 47 else 2


def rows(epoch: int, pools: tuple[Pool, ...], prompts: int = 6, updates: int = 1) -> list[list[int]]:
    """The rows of each update."""
    return [[group.row for group in update] for update in plan_epoch(5, epoch, pools, prompts, updates)]


def test_one_source_is_drawn_from_as_ever() -> None:
    """Runs that were begun before there were sources go on with the same prompts."""
    assert rows(1, (Pool(12),)) + rows(2, (Pool(12),)) + rows(3, (Pool(12),)) == [
        [10, 3, 5, 1, 9, 2],
        [11, 4, 0, 6, 7, 8],
        [5, 11, 4, 7, 0, 3],
    ]
    assert [refilled(5, 2, (Pool(12),), Group(slot, 0), 1).row for slot in range(4)] == [9, 7, 9, 3]
    assert rows_used(5, range(2, 4), (Pool(12),), 2, 2) == [5, 1, 9, 2, 7, 11, 4, 3]


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_epochs_and_updates_are_shared_among_sources(updates: int) -> None:
    for epoch in range(1, 20):
        plan = rows(epoch, SEVERAL, 6, updates)
        assert Counter(source_of(row) for update in plan for row in update) == {0: 1, 1: 3, 2: 2}
        assert all(sum(source_of(row) == 1 for row in update) in (1, 2, 3) for update in plan)


@pytest.mark.parametrize("prompts", [1, 4, 5, 11])
def test_shares_that_do_not_divide_an_epoch_are_exact_over_several(prompts: int) -> None:
    counts, shares = Counter[int](), tuple(pool.share for pool in SEVERAL)
    for epoch in range(1, 13):
        found = Counter(source_of(row) for update in rows(epoch, SEVERAL, prompts) for row in update)
        assert [found[i] for i in range(3)] == drawn(shares, range(epoch, epoch + 1), prompts)
        counts += found
        for i, own in enumerate(shares):
            assert abs(counts[i] - epoch * prompts * own / 6) < 1
    assert [counts[i] for i in range(3)] == [2 * prompts, 6 * prompts, 4 * prompts]


def test_each_source_is_used_up_before_it_is_shuffled_anew() -> None:
    drawn = [row for epoch in range(1, 100) for update in rows(epoch, SEVERAL) for row in update]
    for source, pool in enumerate(SEVERAL):
        own = [row for row in drawn if source_of(row) == source]
        for visit in range(len(own) // pool.rows):
            assert len({*own[visit * pool.rows : (visit + 1) * pool.rows]}) == pool.rows


def test_what_is_drawn_of_a_source_depends_on_its_name_and_not_on_its_place() -> None:
    few, many, other = SEVERAL
    plan = [row - 12 for epoch in range(1, 9) for u in rows(epoch, (other, many, few)) for row in u if 12 <= row < 52]
    assert plan == [row - 7 for epoch in range(1, 9) for u in rows(epoch, SEVERAL) for row in u if source_of(row) == 1]
    assert plan != [
        row - 7
        for epoch in range(1, 9)
        for u in rows(epoch, (few, Pool(40, 3, "renamed"), other))
        for row in u
        if source_of(row) == 1
    ]


def test_a_group_is_replaced_by_one_of_its_source() -> None:
    for row in range(59):
        found = refilled(5, 3, SEVERAL, Group(4, row), 2)
        assert (found.slot, found.round, source_of(found.row)) == (4, 2, source_of(row))
    with pytest.raises(ValueError, match="no row 59 among 59"):
        refilled(5, 3, SEVERAL, Group(4, 59), 2)


@pytest.mark.parametrize("pools", [(Pool(30),), SEVERAL])
@pytest.mark.parametrize("refill", [0, 2])
def test_rows_that_may_be_drawn_are_known_before(pools: tuple[Pool, ...], refill: int) -> None:
    plans = {epoch: [g for update in plan_epoch(5, epoch, pools, 6, 1) for g in update] for epoch in (3, 4)}
    first = [group.row for plan in plans.values() for group in plan]
    again = [
        refilled(5, epoch, pools, group, number).row
        for epoch, plan in plans.items()
        for number in range(1, refill + 1)
        for group in plan
    ]
    assert rows_used(5, range(3, 5), pools, 6, refill) == list(dict.fromkeys([*first, *again]))
