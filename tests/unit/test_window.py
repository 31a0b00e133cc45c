"""Which steps are stochastic."""

from __future__ import annotations

import pytest
from flowfactory.spec import Window
from flowfactory.window import candidates, problems, stochastic_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Case, each

EPOCHS = range(300)


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
        (Window(), 1, "rule", "the last step never is"),
    ],
)
def test_what_is_wrong_is_said(window: Window, steps: int, key: str, words: str) -> None:
    ((found_key, message),) = problems(window, steps)
    assert found_key == key
    assert words in message
