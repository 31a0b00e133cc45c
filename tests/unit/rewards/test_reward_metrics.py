"""What shows that a reward has no more to teach, or that samples grow alike."""

import math

import pytest
import torch
from flowfactory.metrics.scores import diversity, group_metrics, zero_std_groups

NAN = math.nan
SLOTS = torch.tensor([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("values", "saturation"),
    [
        ([1, 1, 1, 1, 1, 1], 1.0),
        ([0, 1, 1, 0.5, 1, 0], 0.5),
        ([0, 0.1, 0.2, 0.3, 0.4, 0.5], 0.0),
        ([1, 1, NAN, 0, NAN, NAN], 2 / 3),
    ],
)
def test_saturation_is_the_share_tied_at_the_top(values: list[float], saturation: float) -> None:
    found = group_metrics({"r": torch.tensor(values, dtype=torch.float64)}, SLOTS)
    assert found["reward/r/saturation"] == pytest.approx(saturation)


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([1, 1, 1, 0, 1, 1], 0.5),
        ([1, 2, 1, 0, 1, 1], 0.0),
        ([1, NAN, 1, NAN, NAN, NAN], 1.0),  # the group without any value does not count
        ([NAN] * 6, 0.0),
    ],
)
def test_zero_std_groups_are_those_without_a_better_sample(values: list[float], share: float) -> None:
    assert zero_std_groups(torch.tensor(values), SLOTS) == share


def test_a_reward_without_any_value_has_no_metrics() -> None:
    assert group_metrics({"r": torch.full((6,), NAN)}, SLOTS) == {}


def test_diversity_is_the_distance_of_two_samples() -> None:
    a, b = torch.full((3, 8, 8), 0.25), torch.full((3, 8, 8), 0.75)
    assert diversity([a, b]) == pytest.approx(0.5)
    assert diversity([a, a, a]) == 0.0
    assert diversity([a]) == 0.0
    pairs = [(x - y) ** 2 for x in (0.25, 0.75, 0.75) for y in (0.25, 0.75, 0.75)]
    assert diversity([a, b, b]) == pytest.approx(math.sqrt(sum(pairs) / 6))


def test_diversity_looks_at_averages_of_large_images_and_at_every_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.rand(3, 128, 128, generator=generator) for _ in range(4)]
    assert diversity(noise) < 0.3 * diversity(noise, side=128)
    still = torch.zeros(5, 3, 8, 8)
    moving = still.clone()
    moving[4] = 1.0
    assert diversity([still, moving]) == pytest.approx(math.sqrt(1 / 5))
