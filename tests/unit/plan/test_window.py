"""Which steps are stochastic."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, product

import attrs
import pytest
from flowfactory.contracts.specs import Branches, Window
from flowfactory.spec.window import candidates, grown, meaningless, misfits, stochastic_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Case, each


def problems(window: Window, steps: int) -> list[tuple[str, str]]:
    """All that is wrong with a window."""
    return [*meaningless(window), *misfits(window, steps)]


EPOCHS = range(1, 301)


def windows(window: Window, steps: int, seed: int = 0) -> set[tuple[int, ...]]:
    """Every window that occurs over many epochs."""
    return {stochastic_steps(window, steps, seed, epoch) for epoch in EPOCHS}


def test_all_is_all_but_the_last() -> None:
    assert windows(Window(), 10) == {tuple(range(9))}
    assert windows(Window(range=(2, 4)), 10) == {(2, 3, 4)}


def test_a_list_is_put_in_order() -> None:
    assert windows(Window(rule="list", steps=(5, 0, 2)), 10) == {(0, 2, 5)}


@each("sde_windows", lambda case: case["name"] == "ff_sde_steps_None_kNone")
def test_all_equals_flow_factory(case: Case) -> None:
    expected = {tuple(steps) for steps in case["outputs"]["current_sde_steps"]}
    assert windows(Window(), case["inputs"]["N"]) == expected


@each("sde_windows", lambda case: case["name"] == "flow_grpo_fast_window_doc_example")
def test_random_windows_are_flow_grpo_fasts(case: Case) -> None:
    """Flow-GRPO-Fast's range may take in the last step, which has no next noise level to go to; ours may not."""
    size, steps = case["inputs"]["sde_window_size"], case["inputs"]["num_steps"]
    expected = {tuple(range(a, b)) for a, b in case["outputs"]["possible_windows"]}
    assert windows(Window(rule="random", size=size), steps) == {w for w in expected if steps - 1 not in w}


def test_random_windows_are_drawn_evenly() -> None:
    drawn = [stochastic_steps(Window(rule="random", size=3), 10, 0, epoch)[0] for epoch in range(3500)]
    assert all(abs(drawn.count(start) - 500) < 110 for start in range(7))


@given(seed=st.integers(0, 2**40), steps=st.integers(2, 60), data=st.data())
@settings(max_examples=80, deadline=None)
def test_random_windows_stay_in_range(seed: int, steps: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, steps - 2))
    last = data.draw(st.integers(first, steps - 2))
    window = Window(rule="random", size=data.draw(st.integers(1, last - first + 1)), range=(first, last))
    assert problems(window, steps) == []
    for epoch in range(5):
        drawn = stochastic_steps(window, steps, seed, epoch)
        assert drawn == tuple(range(drawn[0], drawn[0] + len(drawn)))
        assert len(drawn) == window.size
        assert first <= drawn[0]
        assert drawn[-1] <= last
        assert set(drawn) <= set(candidates(window, steps))
        assert drawn == stochastic_steps(window, steps, seed, epoch)


def test_seed_and_epoch_both_matter() -> None:
    window = Window(rule="random", size=2)
    one, two = ([stochastic_steps(window, 20, seed, epoch) for epoch in range(20)] for seed in (1, 2))
    assert one != two
    assert len(set(one)) > 5


@each("sde_windows", lambda case: case["name"] == "ff_sde_steps_[1, 2, 3, 4, 5]_k2")
def test_subsets_are_flow_factorys(case: Case) -> None:
    """Its own draws are torch's; what must agree is what can be drawn. We put the steps in order."""
    window = Window(rule="subset", steps=tuple(case["inputs"]["sde_steps"]), size=case["inputs"]["num_sde_steps"])
    ours = windows(window, case["inputs"]["N"])
    assert {tuple(sorted(steps)) for steps in case["outputs"]["current_sde_steps"]} <= ours
    assert ours == set(combinations(window.steps or (), 2))


@each("sde_windows", lambda case: case["name"] == "ff_sde_steps_[0, 2, 5]_k5")
def test_a_subset_larger_than_its_choice_is_refused(case: Case) -> None:
    """Flow-Factory silently takes all there are; for us it is a contradiction."""
    window = Window(rule="subset", steps=tuple(case["inputs"]["sde_steps"]), size=case["inputs"]["num_sde_steps"])
    ((key, message),) = problems(window, case["inputs"]["N"])
    assert (key, message) == ("size", "expected at most 3, the number of steps it may choose from")


def test_subsets_are_drawn_evenly_and_need_not_touch() -> None:
    drawn = [stochastic_steps(Window(rule="subset", size=2), 6, 0, epoch) for epoch in range(2000)]
    assert all(abs(drawn.count(pair) - 200) < 60 for pair in combinations(range(5), 2))


PACES = {"progressive": "constant", "decay": "linear", "exp_decay": "exponential"}


@each("sde_windows", lambda case: case["name"].startswith("mixgrpo"))
def test_progressive_windows_are_mixgrpos(case: Case) -> None:
    """Past the end MixGRPO's window is empty and nothing is trained; ours stays where it was last."""
    given = case["inputs"]
    window = Window(
        rule="progressive",
        size=given["group_size"],
        range=(0, given["max_timesteps"] - 1),
        every=given["iters_per_group"],
        stride=given["prog_overlap_step"] if given.get("prog_overlap") else given["group_size"],
        pace=PACES[given["sample_strategy"]],
        least=given.get("min_iters_per_group"),
    )
    assert problems(window, 25) == []
    epoch, last = 0, ()
    for steps, stay in case["outputs"]["windows_run_length"]:
        last = tuple(steps) or last
        for _ in range(stay):
            epoch += 1
            assert stochastic_steps(window, 25, 0, epoch) == last
    assert epoch == case["outputs"]["iterations"]


def test_exponential_pace_hurries_after_its_step() -> None:
    """`ceil(every exp(-rate max(0, step - after)))` epochs at each position."""
    window = Window(rule="progressive", size=2, every=10, pace="exponential", rate=0.5, after=1)
    starts = [stochastic_steps(window, 6, 0, epoch)[0] for epoch in range(1, 60)]
    assert [starts.count(start) for start in range(4)] == [10, 10, math.ceil(10 * math.exp(-0.5)), 4]
    assert starts[-1] == 4


def test_restarting_begins_again() -> None:
    window = Window(rule="progressive", size=3, every=2, stride=3, restart=True)
    seen = [stochastic_steps(window, 9, 0, epoch) for epoch in range(1, 15)]
    assert seen[:6] == [(0, 1, 2)] * 2 + [(3, 4, 5)] * 2 + [(6, 7)] * 2
    assert seen[6:12] == seen[:6]


@pytest.mark.parametrize(
    ("window", "steps", "key", "words"),
    [
        (Window(rule="list"), 10, "steps", "needs it"),
        (Window(rule="random"), 10, "size", "needs it"),
        (Window(steps=(1,)), 10, "steps", "has no meaning for rule 'all'"),
        (Window(rule="list", steps=(1,), size=2), 10, "size", "has no meaning"),
        (Window(rule="list", steps=(1, 9)), 10, "steps", "step 9 cannot be stochastic: of 10 steps, 0 to 8 can"),
        (Window(rule="list", steps=(1, 1)), 10, "steps", "each step once"),
        (Window(range=(3, 9)), 10, "range", "step 9 cannot be stochastic"),
        (Window(range=(4, 3)), 10, "range", "first <= last"),
        (Window(rule="random", size=4, range=(1, 3)), 10, "size", "at most 3"),
        (Window(rule="progressive", size=2), 10, "every", "needs it"),
        (Window(rule="random", size=2, every=2), 10, "every", "has no meaning for rule 'random'"),
        (Window(rule="progressive", size=2, every=3, least=1), 10, "least", "has no meaning for pace 'constant'"),
        (Window(rule="progressive", size=2, every=3, pace="linear", rate=0.2), 10, "rate", "for pace 'linear'"),
        (Window(rule="progressive", size=2, every=2, pace="linear", least=5), 10, "least", "at most `every`, 2"),
        (Window(rule="progressive", size=9, every=3, range=(0, 4)), 10, "size", "at most 5"),
        (Window(rule="subset", size=2, steps=(1, 2, 3), range=(0, 4)), 10, "range", "either the steps or their range"),
        (Window(), 1, "rule", "the last step never is"),
    ],
)
def test_what_is_wrong_is_said(window: Window, steps: int, key: str, words: str) -> None:
    ((found_key, message),) = problems(window, steps)
    assert found_key == key
    assert words in message


@pytest.mark.parametrize("window", [Window(rule="random", size=1, range=(0, 9)), Window(rule="subset", size=2)])
def test_steps_may_be_drawn_for_each_prompt(window: Window) -> None:
    """Groups have their own then, evenly; otherwise all have what they had before there was a choice."""
    own, same = attrs.evolve(window, per="prompt"), attrs.evolve(window, per="epoch")
    drawn = [stochastic_steps(own, 20, 0, 1, slot) for slot in range(2000)]
    assert drawn == [stochastic_steps(own, 20, 0, 1, slot) for slot in range(2000)]
    counts = Counter(step for steps in drawn for step in steps)
    assert set(counts) == set(candidates(window, 20))
    assert max(counts.values()) < 1.4 * min(counts.values())
    assert drawn != [stochastic_steps(own, 20, 0, 2, slot) for slot in range(2000)]
    assert {stochastic_steps(same, 20, 0, 1, slot) for slot in range(20)} == {stochastic_steps(window, 20, 0, 1)}


@pytest.mark.parametrize(
    "window",
    [Window(rule="all", per="prompt"), Window(rule="list", steps=(1,), per="prompt"),
     Window(rule="progressive", size=1, every=1, per="epoch")],
)  # fmt: skip
def test_only_what_is_drawn_can_be_drawn_for_prompts(window: Window) -> None:
    assert problems(window, 10) == [("per", f"has no meaning for rule {window.rule!r}")]


def test_calls_of_huge_groups_are_counted_without_counting_them() -> None:
    growth = grown(Branches(2), (0, 1), 4)
    for starts, most in product(range(1, 20), range(1, 40)):
        sizes = [min(growth.together(most), starts - at) for at in range(0, starts, growth.together(most))]
        assert growth.calls(starts, most) == sum(-(-size * rows // most) for size in sizes for rows in growth.rows)
    assert growth.calls(10**15, 1) == 10**15 * sum(growth.rows)
