"""The epoch plan: who samples what, for which update."""

from collections import Counter

import pytest
from flowfactory.sampling.epochs import plan_epoch, share


@pytest.mark.parametrize("world", [1, 2, 4])
def test_members_of_each_update_do_not_depend_on_the_world_size(world: int) -> None:
    plan = plan_epoch(seed=1, epoch=3, rows=20, prompts=16, updates=2)
    shares = [share(plan, rank, world) for rank in range(world)]
    for update in range(2):
        together = [group for one in shares for group in one[update]]
        assert together == list(plan[update])
        assert len({len(one[update]) for one in shares}) == 1


def test_every_prompt_is_used_once_before_any_is_used_twice() -> None:
    rows, prompts = 12, 5
    used = [
        group.row for epoch in range(1, 13) for update in plan_epoch(7, epoch, rows, prompts, 1) for group in update
    ]
    for visit in range(len(used) // rows):
        assert sorted(used[visit * rows : (visit + 1) * rows]) == list(range(rows))


def test_passes_are_shuffled_differently() -> None:
    first, second = (plan_epoch(0, epoch, 30, 30, 1)[0] for epoch in (1, 2))
    assert [g.row for g in first] != [g.row for g in second]
    assert [g.row for g in first] != [g.row for g in plan_epoch(1, 1, 30, 30, 1)[0]]


def test_slots_number_the_groups_even_where_prompts_repeat() -> None:
    groups = [g for update in plan_epoch(0, 1, rows=3, prompts=8, updates=2) for g in update]
    assert [g.slot for g in groups] == list(range(8))
    assert set(Counter(g.row for g in groups).values()) <= {2, 3}
