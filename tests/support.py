"""What the tests of core and of the plugins share: golden cases, and a policy that is a table of velocity fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.contracts.scheduler import StochasticScheduler
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import TrainerSpec
from flowfactory.contracts.trainer import Policy, Trainer
from flowfactory.contracts.types import Batch, Conditions, Loss, Rollout
from torch import Tensor

Case = Mapping[str, Any]
Field = Tensor | Callable[[Tensor, Tensor], Tensor]

GOLDEN = Path(__file__).parent / "golden"
STORAGE = (torch.float32, torch.bfloat16, torch.float16)
GRID = torch.tensor([3 * s / (1 + 2 * s) for s in [1 - i / 10 for i in range(11)]])
"""Ten steps at shift 3: the schedule of most goldens."""


def golden(name: str, keep: Callable[[Case], bool] = lambda case: True) -> list[Case]:
    """The cases of one golden file, with tensors for its `{shape, dtype, data}` records."""
    cases = [_decoded(case) for case in json.loads((GOLDEN / f"{name}.json").read_text())["cases"]]
    kept = [case for case in cases if keep(case)]
    assert kept, f"no case of {name}.json is left"
    return kept


def each(name: str, keep: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Run a test on every kept case of a golden file, as argument `case`."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in golden(name, keep)])


def _decoded(value: Any) -> Any:
    if isinstance(value, dict) and "shape" in value and "data" in value:
        dtype = getattr(torch, value["dtype"].removeprefix("torch."))
        data = [float(x) if isinstance(x, str) else x for x in value["data"]]
        return torch.tensor(data, dtype=torch.float64).to(dtype).reshape(value["shape"])
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    return value


def close(actual: Tensor, expected: Tensor, atol: float, rtol: float = 0.0) -> None:
    """Assert closeness of values and equality of shapes; dtypes may differ."""
    torch.testing.assert_close(actual.detach().double(), torch.as_tensor(expected).double(), atol=atol, rtol=rtol)


class FieldPolicy:
    """A policy by weight set: a tensor it always answers, or a function of `x` and `sigma`.

    calls: the weight set of every velocity asked for. guidances: and the guidance.
    moves: every `move`, as (set, decay).
    """

    def __init__(self, current: Field, **others: Field) -> None:
        self.fields = {"current": current, **others}
        self.active = "current"
        self.calls: list[str] = []
        self.guidances: list[float | None] = []
        self.moves: list[tuple[str, float]] = []

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float | None = None) -> Tensor:
        self.calls.append(self.active)
        self.guidances.append(guidance)
        field = self.fields[self.active]
        return field if isinstance(field, Tensor) else field(x, sigma)

    @contextmanager
    def using(self, weights: str) -> Iterator[None]:
        before, self.active = self.active, weights
        yield
        self.active = before

    def move(self, weights: str, decay: float) -> None:
        self.moves.append((weights, decay))


def transition(
    scheduler: StochasticScheduler[Any],
    sigmas: Sequence[float],
    x: Tensor,
    x_next: Tensor,
    logprob: Tensor,
    advantages: Tensor,
    on_policy: bool = False,
) -> Batch:
    """A batch of one stored step. sigmas: the schedule's first levels up to and including this step's two."""
    step = len(sigmas) - 2
    levels = torch.tensor([*sigmas, 0.0])
    rollout = Rollout(levels, (step,), {step: x, step + 1: x_next, step + 2: x_next}, {step: logprob})
    return Batch(rollout, {}, advantages.double(), on_policy, scheduler)


class Forgetful(Trainer[TrainerSpec]):
    """A trainer that remembers nothing and learns nothing."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Any]:
        return ()

    def loss(self, policy: Policy, batch: Batch, term: Any) -> Loss:
        return Loss({})


FORGETFUL = Forgetful(TrainerSpec())
