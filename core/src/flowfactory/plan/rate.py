"""The learning rate, a pure function of the step, so that nothing about it is stored. Imports no torch."""

from __future__ import annotations

import math

from flowfactory.spec.tables import Optimizer


def learning_rate(table: Optimizer, step: int, epochs: int) -> float:
    """That of optimizer step `step`, counted from 1, in a run of so many epochs."""
    if step <= table.warmup:
        return table.lr * step / table.warmup
    done = (step - 1 - table.warmup) / max(1, epochs * table.updates - table.warmup)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return table.lr * shapes[table.lr_schedule]
