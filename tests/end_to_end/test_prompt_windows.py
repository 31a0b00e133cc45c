"""Runs in which each prompt has a stochastic step of its own, as Flash-GRPO has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from flowfactory.contracts.types import Batch
from flowfactory.training import optimise

FLASH = (
    "scheduler={name='linear-sde', window={rule='random', size=1, per='prompt'}}", "trainer.level=true", "run.epochs=2",
    "run.save_samples=0", "eval.every=0",
)  # fmt: skip


def test_neither_micro_batches_nor_a_stop_change_what_is_learned(run: Callable[..., Path]) -> None:
    whole = run("whole", *FLASH)
    part = run("part", *FLASH, "run.epochs=1")
    assert main(["resume", str(part), "--epochs", "2"]) == 0
    assert metrics(part) == metrics(whole)
    small = run("small", *FLASH, "sampling.micro_batch=2", "optimizer.micro_batch=1")
    for one, other in zip(metrics(whole), metrics(small), strict=True):
        largest = "train/ratio_deviation"  # of a micro-batch
        compared = [{name: value for name, value in line.items() if name != largest} for line in (one, other)]
        assert compared[0] == pytest.approx(compared[1], rel=1e-3, abs=1e-4)


def test_a_micro_batch_has_one_window_and_knows_the_shares_of_all(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group's three samples have one step; in the first epoch's updates of two groups each, several are drawn."""
    seen: list[Batch] = []
    making = optimise.batch_of

    def batch_of(*arguments: object) -> Batch:
        seen.append(making(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(optimise, "batch_of", batch_of)
    run("a", *FLASH, "run.epochs=1")
    steps = {int(group): batch.rollout.steps for batch in seen for group in batch.groups}
    assert all(len(of) == 1 for of in steps.values())
    assert len(set(steps.values())) > 1
    for batch in seen:
        update = int(batch.groups[0]) // 2
        own = [steps[group][0] for group in (2 * update, 2 * update + 1)]
        assert batch.shares == {step: own.count(step) / 2 for step in own}
        assert sorted(batch.rollout.latents) == sorted({batch.rollout.steps[0], batch.rollout.steps[0] + 1, 4})
    assert torch.cat([batch.groups for batch in seen]).unique().tolist() == [0, 1, 2, 3]
