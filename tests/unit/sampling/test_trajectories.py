"""Samples are found again by their number, whatever stochastic steps they and others have."""

from __future__ import annotations

import pytest
import torch
from flowfactory.contracts.types import Rollout
from flowfactory.sampling.trajectories import Trajectories

GRID = torch.linspace(1, 0, 5)


def rollout(steps: tuple[int, ...], *numbers: float) -> Rollout:
    """Trajectories whose latents are their numbers."""
    x = torch.tensor(numbers)[:, None]
    positions = {4, *steps, *(step + 1 for step in steps)}
    return Rollout(GRID, steps, dict.fromkeys(positions, x), dict.fromkeys(steps, x[:, 0]))


PARTS = (rollout((0,), 0, 1), rollout((2,), 2), rollout((0,), 3, 4, 5), rollout((1, 2), 6, 7), rollout((2,), 8))
STEPS = [(0,)] * 2 + [(2,)] + [(0,)] * 3 + [(1, 2)] * 2 + [(2,)]


def found(made: Trajectories, *samples: int) -> list[float]:
    part = made[samples]
    assert all(torch.equal(part.logprobs[step], part.final[:, 0]) for step in part.steps)
    return part.final[:, 0].tolist()


def test_each_sample_has_its_number_and_its_steps() -> None:
    made = Trajectories.joined(PARTS)
    assert [made.steps(i) for i in range(9)] == STEPS
    assert [found(made, i) for i in range(9)] == [[float(i)] for i in range(9)]
    assert found(made, 4, 0, 3) == [4, 0, 3]
    assert sorted(part.steps for part in made.parts) == [(0,), (1, 2), (2,)]


def test_samples_with_other_steps_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="too many values"):
        found(Trajectories.joined(PARTS), 0, 2)


def test_rollouts_alike_are_one() -> None:
    made = Trajectories.joined([rollout((1,), 0, 1), rollout((1,), 2)])
    assert len(made.parts) == 1
    assert found(made, 2, 0, 1) == [2, 0, 1]


def test_there_may_be_none() -> None:
    assert len(Trajectories.joined([]).part) == 0
