"""Credit by step against the authors' numbers, and what must hold of any credit."""

from __future__ import annotations

import attrs
import pytest
import torch
from flowfactory import Scores
from flowfactory_plugin_stepgrpo import StepGRPOSpec, Turning
from flowfactory_plugin_stepgrpo.stepgrpo import StepGRPO, worth_of
from support import Case, close, each
from torch import Tensor

GAINS, TURNS = Turning(), Turning(points="towards")


def turning(case: Case) -> Turning:
    """The authors' switches."""
    if "options" not in case["inputs"]:
        return GAINS
    on = case["inputs"]["options"]
    points = "consistent" if on["select_inter_step_only_from_consistent_trajectory"] else "towards"
    return Turning(
        main="whole" if on["take_delta_global_as_main"] else "gain",
        bonus="rest" if on["use_sde_minus_rt"] else "whole",
        scale=on["eta"],
        replace=on["drop_original_reward_when_having_bonus"],
        points="every" if on["indicator_wo_delta_global_constraint"] else points,
        first=on["apply_first_step_bonus"],
    )


def of_rewards(case: Case) -> bool:
    return not case["name"].startswith("looks")


@each("step_credit", of_rewards)
def test_worth_and_advantages_equal_the_authors(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    looks, groups = given["rewards"].double(), torch.tensor(given["groups"])
    chosen = turning(case)
    close(worth_of(looks, chosen), expected["gains" if chosen == GAINS else "step_rewards"], 1e-6)
    trainer = StepGRPO(StepGRPOSpec(turning=chosen))
    scores = Scores({"r": looks[:, -1]}, {"r": 1.0}, {"r": given["rewards"]})
    close(trainer.advantages(scores, groups), expected["advantages"], 2e-6, 1e-5)


@each("step_credit", lambda case: not of_rewards(case))
def test_advantages_of_looks(case: Case) -> None:
    expected, groups = case["outputs"], torch.tensor(case["inputs"]["groups"])
    for kind, name in (("completed", ""), ("estimated", "estimate_")):
        looks = expected[f"{name}rewards"]
        scores = Scores({"r": looks[:, -1]}, {"r": 1.0}, {"r": looks})
        found = StepGRPO(StepGRPOSpec(looks=kind)).advantages(scores, groups)  # type: ignore[arg-type]
        close(found, expected[f"{name}advantages"], 2e-6, 1e-5)


def walk(count: int = 8, states: int = 6) -> Tensor:
    return torch.randn(count, states, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_gains_add_up() -> None:
    looks = walk()
    close(worth_of(looks, GAINS).sum(1), looks[:, -1] - looks[:, 0], 1e-12)


def test_several_rewards_are_added_up_by_step() -> None:
    looks, groups = {"a": walk(), "b": walk().flip(0)}, torch.tensor([0] * 4 + [1] * 4)
    both = {"c": 2 * looks["a"] + looks["b"]}
    found = [
        StepGRPO(StepGRPOSpec()).advantages(Scores({k: v[:, -1] for k, v in x.items()}, weights, x), groups)
        for x, weights in ((looks, {"a": 2.0, "b": 1.0}), (both, {"c": 1.0}))
    ]
    close(found[0], found[1], 1e-12)


STATES = [0.0, -0.2, 0.1, 0.3, 0.2, 0.6]
"""Of six states; the second and the fifth lead away."""


@pytest.mark.parametrize(
    ("keys", "turns"),
    [({}, [2, 5]), ({"points": "every"}, [2, 4, 5]), ({"points": "consistent"}, [2]), ({"first": False}, [2, 5])],
)
def test_turns_are_where_a_trajectory_turns(keys: dict[str, object], turns: list[int]) -> None:
    looks = torch.tensor([STATES, [-x for x in STATES]], dtype=torch.float64)
    worth, gains = worth_of(looks, attrs.evolve(TURNS, **keys)), looks.diff(dim=1)
    found = [[k + 1 for k in range(5) if not torch.isclose(worth[i, k], gains[i, k])] for i in (0, 1)]
    assert found == [turns, turns]


@pytest.mark.parametrize(
    ("chosen", "lost"),
    [(GAINS, {1, 2}), (TURNS, {1, 2, 3}), (Turning(points="every", bonus="rest"), {1, 2, 3})],
    ids=["gains", "turns", "every"],
)
def test_a_missing_score_takes_what_depends_on_it(chosen: Turning, lost: set[int]) -> None:
    looks = walk()
    looks[0, 2] = torch.nan
    worth = worth_of(looks, chosen)
    assert set(worth[0].isnan().nonzero().flatten().tolist()) == lost
    assert not worth[1:].isnan().any()


def test_where_the_whole_is_missing_no_turn_is_known() -> None:
    looks = walk()
    looks[0, 0] = torch.nan
    assert worth_of(looks, TURNS)[0].isnan().all()


def test_needs() -> None:
    assert StepGRPOSpec().needs.looks == "completed"
    assert StepGRPOSpec(looks="estimated").needs.looks == "estimated"
    assert StepGRPOSpec(kl_beta=0.1).needs.reference
    assert StepGRPOSpec().needs.trajectory == "steps"
