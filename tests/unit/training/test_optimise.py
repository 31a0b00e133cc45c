"""The averaged weights' decay and the learning rate: pure functions of the optimizer step."""

from __future__ import annotations

from itertools import pairwise

import attrs
import pytest
from flowfactory.spec.tables import Optimizer, RunTable
from flowfactory.training.optimise import ema_decay, learning_rate
from support import Case, each


@each("decay_schedules", lambda case: case["name"] in ("flow_grpo_ema_decay0.9", "ff_power"))
def test_the_average_decays_as_in_the_authors_code(case: Case) -> None:
    inputs = case["inputs"]
    ours = [ema_decay(inputs["decay"], step) for step in inputs["steps"]]
    assert ours == pytest.approx(case["outputs"]["decay"], abs=1e-12)


@attrs.frozen
class Tables:
    """The two tables the learning rate follows from."""

    run: RunTable
    optimizer: Optimizer


def rates(**keys: object) -> list[float]:
    tables = Tables(RunTable(name="x", epochs=5), Optimizer(lr=1.0, updates=2, **keys))  # type: ignore[arg-type]
    return [learning_rate(tables, step) for step in range(1, 11)]  # type: ignore[arg-type]


def test_the_learning_rate_warms_up_and_falls() -> None:
    assert rates() == [1.0] * 10
    assert rates(warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(lr_schedule="linear") == pytest.approx([1 - n / 10 for n in range(10)])
    cosine = rates(lr_schedule="cosine", warmup=2)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(cosine[2:]))
