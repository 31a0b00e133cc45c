"""Optimizers whose state is in main memory, but for that of the parameters which a step is just moving."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.models import quantized
from flowfactory.spec.tables import Optimizer

PIECE = 1 << 28
"""Most numbers that are moved at a time, unless one tensor has more."""

RESTS = "rests"
"""Among an optimizer's defaults: its state is in main memory."""

CPU = torch.device("cpu")


class Resting(torch.optim.Optimizer):
    """An optimizer whose state rests in main memory: it steps as ever, some parameters after the others."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter."""
        if closure is not None:
            raise TypeError("the losses are there already: call step without a closure")
        groups = [(group, group["params"]) for group in self.param_groups]
        try:
            for group, _ in groups:
                group["params"] = []
            for group, whole in groups:
                for piece in pieces(whole):
                    group["params"] = piece
                    move(self, piece)
                    super().step()
                    put_aside(self, piece)
                group["params"] = []
        finally:
            for group, whole in groups:
                group["params"] = whole


def adamw(parameters: Iterable[nn.Parameter], table: Optimizer, rests: bool) -> torch.optim.Optimizer:
    """AdamW as `[optimizer]` has it.

    Args:
        rests: whether its state is in main memory between its steps.

    Raises:
        RunError: its moments are to have 8 bits, and bitsandbytes is not installed.
    """
    kind: Any = quantized.adamw(table.bits)
    if rests:
        kind = type(f"Resting{kind.__name__}", (Resting, kind), {})
    made: torch.optim.Optimizer = kind(
        parameters, lr=table.lr, betas=table.betas, eps=table.eps, weight_decay=table.weight_decay
    )
    if rests:
        made.defaults[RESTS] = True
    return made


def pieces(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbouring parameters that are moved together."""
    piece: list[Tensor] = []
    for parameter in parameters:
        if piece and sum(p.numel() for p in piece) + parameter.numel() > PIECE:
            yield piece
            piece = []
        piece.append(parameter)
    if piece:
        yield piece


def put_aside(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor] | None = None) -> None:
    """Move the state of some parameters, or of all, into main memory, if that is where an optimizer's rests."""
    if RESTS in optimizer.defaults:
        for parameter in [*optimizer.state] if parameters is None else parameters:
            if parameter in optimizer.state:
                _moved(optimizer.state[parameter], CPU)


def move(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Move the state of parameters to where they are."""
    for parameter in parameters:
        if parameter in optimizer.state:
            _moved(optimizer.state[parameter], parameter.device)


def _moved(state: dict[str, Any], device: torch.device) -> None:
    """Counters stay where they are."""
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            state[key] = value.to(device)
