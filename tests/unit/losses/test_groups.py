"""Means over groups, wherever their samples lie in a batch."""

from __future__ import annotations

import pytest
import torch
from flowfactory import averaging, over_groups

GROUPS = torch.tensor([4, 0, 4, 7, 0, 4])
VALUES = torch.tensor([1.0, 2.0, 3.0, 10.0, 6.0, 5.0], dtype=torch.float64)


def test_each_sample_has_the_mean_of_its_group() -> None:
    assert (averaging(GROUPS) @ VALUES).tolist() == pytest.approx([3, 4, 3, 10, 4, 3])


def test_a_mean_may_be_weighted_by_a_softmax_over_the_group() -> None:
    logits = torch.tensor([0.0, 0.0, 1.0, 5.0, 2.0, -1.0])
    found = (averaging(GROUPS, logits) @ VALUES).tolist()
    three = torch.softmax(torch.tensor([0.0, 1.0, -1.0]), 0).tolist()
    two = torch.softmax(torch.tensor([0.0, 2.0]), 0).tolist()
    first, second = sum(w * v for w, v in zip(three, (1, 3, 5), strict=True)), two[0] * 2 + two[1] * 6
    assert found == pytest.approx([first, second, first, 10, second, first])


def test_a_group_counts_as_one_whatever_its_size() -> None:
    assert float(over_groups(VALUES, GROUPS)) == pytest.approx((3 + 4 + 10) / 3)
    assert float(over_groups(VALUES[3:4], GROUPS[3:4])) == 10
