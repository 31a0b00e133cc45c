"""Several sources: whose turn it is, and the rows that there are."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import accumulate
from math import ceil, floor, gcd
from pathlib import Path

import pytest
from flowfactory.data.sources import (
    Data,
    DataSource,
    Pool,
    before,
    counted,
    drawn,
    load_held_out,
    load_training,
    pools,
    turns,
)

SHARES = [(1,), (5,), (1, 1), (1, 3), (2, 3), (999, 1), (1, 1, 1), (1, 2, 3), (7, 5, 3, 2), (1, 1, 1, 97), (6, 4, 2)]
SHARES += [tuple(random.Random(n).randint(1, 40) for _ in range(random.Random(n).randint(2, 9))) for n in range(40)]


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_every_beginning_is_shared_to_a_whole_number(shares: tuple[int, ...]) -> None:
    order = turns(shares)
    assert len(order) == sum(shares) // gcd(*shares)
    for i, share in enumerate(shares):
        had = [0, *accumulate(turn == i for turn in order)]
        exact = [Fraction(share * k, sum(shares)) for k in range(len(order) + 1)]
        assert all(floor(e) <= count <= ceil(e) for e, count in zip(exact, had, strict=True))
        assert had[-1] == share // gcd(*shares)


def test_turns_of_a_few() -> None:
    assert turns((1,)) == (0,)
    assert turns((2, 2)) == (0, 1)
    assert turns((1, 3)) in ((1, 0, 1, 1), (0, 1, 1, 1), (1, 1, 0, 1))


def test_counts_go_on_over_periods() -> None:
    assert before((1, 3), 0) == [0, 0]
    assert before((1, 3), 4000) == [1000, 3000]
    for start in range(20):
        assert sum(before((1, 2, 4), start)) == start
    assert drawn((1, 3), range(1, 2), 8) == [2, 6]
    assert drawn((1, 3), range(2, 4), 2) == [1, 3]


def written(folder: Path) -> Data:
    for name, count in (("a", 3), ("b", 1)):
        (folder / f"{name}.txt").write_text("".join(f"{name}{i}\n" for i in range(count)))
        (folder / f"{name}-eval.txt").write_text("".join(f"held {name}{i}\n" for i in range(count)))
    both = [
        DataSource(name=n, prompts=str(folder / f"{n}.txt"), eval_prompts=str(folder / f"{n}-eval.txt"), share=s)
        for n, s in (("a", 1), ("b", 4))
    ]
    return Data(source=(*both, DataSource(name="c", prompts=str(folder / "a.txt"))))


def test_rows_know_their_source(tmp_path: Path) -> None:
    data = written(tmp_path)
    rows = load_training(data)
    assert [(row.prompt, row.source) for row in rows] == [
        *((f"a{i}", "a") for i in range(3)),
        ("b0", "b"),
        *((f"a{i}", "c") for i in range(3)),
    ]
    assert pools(data, rows) == (Pool(3, 1, "a"), Pool(1, 4, "b"), Pool(3, 1, "c"))
    assert counted(rows) == {"a": 3, "b": 1, "c": 3}
    assert data.held_out == ("a", "b")


def test_held_out_rows_come_from_each_in_turn(tmp_path: Path) -> None:
    held_out = load_held_out(written(tmp_path))
    assert [row.prompt for row in held_out] == ["held a0", "held b0", "held a1", "held a2"]
    assert [row.source for row in held_out] == ["a", "b", "a", "a"]


def test_prompts_are_one_source_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n")
    data = Data(prompts=str(tmp_path / "a.txt"))
    rows = load_training(data)
    assert [row.source for row in rows] == ["", ""]
    assert pools(data, rows) == (Pool(2),)
    assert (load_held_out(data), data.held_out) == ([], ())


def test_the_only_source_is_drawn_from_as_if_it_had_no_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n")
    data = Data(source=(DataSource(name="one", prompts=str(tmp_path / "a.txt"), share=5),))
    assert pools(data, load_training(data)) == (Pool(2, 5),)
