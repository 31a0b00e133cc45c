"""A number that is not finite ends a run on every process, before it reaches the weights, and is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from flowfactory.errors import RunError
from flowfactory.policy.finite import Diverged, check_samples, check_step, check_weights
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import PeerLost, Processes
from flowfactory.spec.tables import Full
from torch import nn


class Pair(Processes):
    """One of two processes; the other says `others`."""

    world = 2  # type: ignore[assignment]

    def __init__(self, main: bool = True, others: Any = None) -> None:
        self.accelerator, self._main, self._others = self, main, others

    @property
    def main(self) -> bool:
        return self._main

    def gather_objects(self, values: list[Any]) -> list[Any]:
        return [*values, *(self._others or [])]

    def any(self, flag: bool) -> bool:
        return flag or bool(self._others)

    def end_training(self) -> None:
        """Nothing is open."""


FINE = {"loss/policy": 0.1, "loss/kl": 2e38, "train/gradient_norm": 1e30}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_loss_that_is_not_finite_is_named(value: float) -> None:
    check_step(Pair(), "epoch 3, update 1 of 2", FINE)
    with pytest.raises(Diverged, match=r"epoch 3, update 1 of 2: not finite: `loss/kl`; this step was not made"):
        check_step(Pair(), "epoch 3, update 1 of 2", {**FINE, "loss/kl": value})


def test_all_processes_end_for_what_one_has_found() -> None:
    with pytest.raises(RunError, match="`loss/kl`"):
        check_step(Pair(others=["loss/kl"]), "epoch 1, update 1 of 1", FINE)
    with pytest.raises(PeerLost, match="`loss/kl`"):
        check_step(Pair(main=False), "epoch 1, update 1 of 1", {**FINE, "loss/kl": math.nan})


def weights_of(value: float) -> Weights:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.bias[1] = value
    return Weights({"net": network}, Full(), [], [], 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_single_weight_that_is_not_finite_is_seen(value: float) -> None:
    check_weights(Pair(), "epoch 1", weights_of(3e38))
    with pytest.raises(Diverged, match="weights that are not finite"):
        check_weights(Pair(), "epoch 1", weights_of(value))
    with pytest.raises(PeerLost):
        check_weights(Pair(main=False, others=[True]), "epoch 1", weights_of(1.0))


def test_samples_that_are_not_finite_are_put_down_to_what_made_them() -> None:
    check_samples(Pair(), "epoch 1", latents=True, media=True, trained=False)
    for trained, cause in ((False, r"no weight has been trained .* guidance"), (True, r"smaller \[optimizer\] lr")):
        with pytest.raises(Diverged, match=rf"the weights give latents that are not finite; .*{cause}"):
            check_samples(Pair(), "epoch 1", latents=False, media=False, trained=trained)
    with pytest.raises(Diverged, match="what they decode to is not"):
        check_samples(Pair(), "epoch 1", latents=True, media=False, trained=True)
