"""Advantages against their authors' numbers, and what must hold whatever the rewards are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from flowfactory.rewards.advantages import Scale, advantages, scaled
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Case, close, each
from torch import Tensor

NAN = math.nan
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def of(
    *rewards: list[float],
    groups: Tensor = GROUPS,
    weights: tuple[float, ...] = (),
    how: str = "sum",
    std: str = "group",
) -> Tensor:
    """Our advantages of unnamed rewards, of weight 1 unless said otherwise."""
    values = {str(i): torch.tensor(reward, dtype=torch.float64) for i, reward in enumerate(rewards)}
    return advantages(values, dict(zip(values, weights or (1.0,) * len(values), strict=True)), groups, how, std)


def rewards_of(case: Case) -> tuple[Mapping[str, Tensor], Mapping[str, float]]:
    """A golden's rewards and weights by label, however it spells them."""
    given = case["inputs"]["rewards"]
    values = {"only": given} if isinstance(given, Tensor) else given
    values = {label: torch.as_tensor(v, dtype=torch.float64) for label, v in values.items()}
    weights = case["inputs"].get("weights", {})
    return values, weights if isinstance(weights, dict) and weights else dict(
        zip(values, weights or [1.0], strict=True)
    )


def scales_of(case: Case) -> tuple[Scale, Scale]:
    """The divisors a golden's code base uses; `max(std, 1e-6)` where Flow-Factory's golden does not say."""
    given = case["inputs"]
    floor = given.get("std_floor", 1e-6 if case["name"].startswith("ff") else 0.0)
    ddof, eps = given.get("ddof", 0), given.get("eps", given.get("eps_group", 0.0))
    return Scale(eps, floor, ddof), Scale(given.get("eps_batch", 0.0), floor, ddof)


# --- goldens -------------------------------------------------------------------------------------------------------


@each("advantages")
def test_every_code_base_is_one_choice_of_divisor(case: Case) -> None:
    """DanceGRPO, GDPO (TRL) and Flow-Factory divide by other amounts than we do, and the last two work in float32."""
    values, weights = rewards_of(case)
    how = "gdpo" if "gdpo" in case["name"] else "sum"
    std = "global" if case["inputs"].get("global_std") else "group"
    ours = scaled(values, weights, case["inputs"]["groups"], how, std, *scales_of(case))
    close(ours, case["outputs"]["advantages"], 1e-12 if case["precision"] == "f64" else 2e-6)


@each("advantages", lambda case: case["name"].startswith("flow_grpo"))
def test_our_choice_is_flow_grpos(case: Case) -> None:
    """Flow-GRPO, DiffusionNFT and AWM share it: population standard deviation plus 1e-4, in float64."""
    values, weights = rewards_of(case)
    ours = advantages(values, weights, case["inputs"]["groups"], "sum", "group")
    close(ours, case["outputs"]["advantages"], 1e-12)


# --- what holds for any rewards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.7, 0.3, 0.1 + 0.2, 1e8 + 0.1, -1e-3])
@pytest.mark.parametrize("std", ["group", "global"])
@pytest.mark.parametrize("how", ["sum", "gdpo"])
def test_equal_rewards_give_exactly_zero(how: str, std: str, value: float) -> None:
    """DanceGRPO gives 0.886 to twelve samples of reward 0.7: a float32 mean that is off by one bit, over 1e-8."""
    groups = torch.arange(24) // 12
    result = of([value] * 12 + [float(i) for i in range(12)], groups=groups, how=how, std=std)
    assert (result[:12] == 0).all()
    assert (result[12:].diff() > 0).all()


def test_nothing_but_ties_gives_zeros() -> None:
    for how, std in [("sum", "group"), ("sum", "global"), ("gdpo", "group"), ("gdpo", "global")]:
        assert (of([0.9] * 8, [3.0] * 8, how=how, std=std) == 0).all()


def test_small_spreads_survive() -> None:
    """Flow-Factory's float32 `E[r²] - E[r]²` is wrong by half for rewards 0.85 ± 1e-3, and crashes for ± 1e-4."""
    for size in (1e-3, 1e-4):
        result = of([0.85 - size, 0.85 + size] * 4, std="global")
        close(result.abs(), torch.full((8,), size / (size + 1e-4)), 1e-7)


rewards = st.lists(st.floats(-10, 10), min_size=8, max_size=8)


@given(rewards, rewards, st.sampled_from(["sum", "gdpo"]), st.sampled_from(["group", "global"]))
@settings(max_examples=60, deadline=None)
def test_each_group_balances(a: list[float], b: list[float], how: str, std: str) -> None:
    result = of(a, b, weights=(1.0, 0.5), how=how, std=std)
    close(result.reshape(2, 4).sum(1), torch.zeros(2), 1e-6)


@given(rewards, st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_a_constant_added_to_a_reward_changes_nothing(a: list[float], shift: float) -> None:
    close(of([r + shift for r in a]), of(a), 1e-7)


@given(rewards, rewards)
@settings(max_examples=60, deadline=None)
def test_gdpo_is_standardised(a: list[float], b: list[float]) -> None:
    result = of(a, b, weights=(2.0, 0.5), how="gdpo")
    assert result.mean().item() == pytest.approx(0, abs=1e-6)
    if result.abs().max() > 1e-2:
        assert result.std(correction=0).item() == pytest.approx(1, rel=1e-6)


def test_gdpo_hears_a_quiet_reward_that_the_sum_drowns() -> None:
    loud, quiet = [0.0, 100.0, 0.0, 100.0] * 2, [0.0, 0.0, 0.1, 0.1] * 2
    drowned, heard = of(loud, quiet), of(loud, quiet, how="gdpo")
    assert (drowned[2] - drowned[0]).item() < 0.01
    close(heard[2] - heard[0], heard[1] - heard[0], 1e-2)


def test_global_deviation_keeps_groups_apart() -> None:
    """A group that differs little gets small advantages, not as large as one that differs much."""
    result = of([0.0, 0.1, 0.0, 0.1, 0.0, 1.0, 0.0, 1.0], std="global")
    close(result[5] / result[1], torch.tensor(10.0), 1e-9)


def test_groups_may_lie_anywhere_and_differ_in_size() -> None:
    values, groups = [1.0, 2.0, 3.0, 5.0, 4.0, 9.0], torch.tensor([7, 3, 7, 3, 7, 3])
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    sorted_result = of([values[i] for i in order.tolist()], groups=groups[order])
    close(of(values, groups=groups)[order], sorted_result, 1e-12)
    assert of([1.0, 2.0, 3.0], groups=torch.tensor([0, 0, 1]))[2] == 0


# --- scores that are missing ---------------------------------------------------------------------------------------


def test_a_missing_score_counts_as_its_groups_mean() -> None:
    """So the sample is judged by its other reward alone, and the others as if it were not there."""
    result = of([NAN, 1.0, 2.0, 3.0, *[0.0] * 4], [5.0, 5.0, 5.0, 5.0, *[0.0] * 4])
    assert result[0] == 0
    close(result[1:4] / result[3], torch.tensor([-1.0, 0.0, 1.0]), 1e-12)


@pytest.mark.parametrize("std", ["group", "global"])
@pytest.mark.parametrize("how", ["sum", "gdpo"])
def test_a_sample_without_any_score_takes_no_part(how: str, std: str) -> None:
    full = [0.3, 0.9, 0.4, *[0.1, 0.6, 0.2, 0.8]]
    result = of([NAN, *full], how=how, std=std)
    assert result[0].isnan()
    assert not result[1:].isnan().any()
    close(result[1:], of(full, groups=GROUPS[1:], how=how, std=std), 1e-12)


@pytest.mark.parametrize("std", ["group", "global"])
@pytest.mark.parametrize("how", ["sum", "gdpo"])
def test_a_reward_that_does_not_apply_to_a_prompt_leaves_it_to_the_others(how: str, std: str) -> None:
    quality, text = [0.1, 0.2, 0.3, 0.4] * 2, [*[NAN] * 4, 1.0, 0.0, 1.0, 0.0]
    result = of(quality, text, how=how, std=std)
    assert not result.isnan().any()
    assert (result[:4].diff() > 0).all()
    assert result[4] > result[5]


def test_where_a_reward_does_not_apply_it_does_not_spread_the_epoch() -> None:
    """A constant added to it changes nothing, although only one group has it: the others stand at its mean."""
    quality, text = [0.1, 0.2, 0.3, 0.4] * 2, [*[NAN] * 4, 1.0, 0.0, 1.0, 0.0]
    close(of(quality, [t + 100 for t in text], std="global"), of(quality, text, std="global"), 1e-9)


def test_failing_everywhere_is_nan_everywhere() -> None:
    assert of([NAN] * 8).isnan().all()
    assert of([NAN] * 8, [1.0] * 8, weights=(1.0, 0.0)).isnan().all()


def test_a_reward_of_weight_zero_is_only_watched() -> None:
    a, b = [0.1, 0.5, 0.3, 0.9] * 2, [4.0, NAN, 1.0, 2.0] * 2
    close(of(a, b, weights=(1.0, 0.0)), of(a), 0.0)
