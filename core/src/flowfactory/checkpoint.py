"""Checkpoints: complete or absent, never in between.

A checkpoint is written under a temporary name, flushed to the disk and renamed. Everything in it is tensors
(safetensors) and plain JSON; random state needs no saving (see `seeds`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowfactory.files import flush
from flowfactory.weights import Weights

STATE = "state.json"


@attrs.frozen
class Progress:
    """How far a run has come: finished epochs and optimizer steps."""

    epoch: int = 0
    step: int = 0


def save(
    folder: Path,
    progress: Progress,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    keep: int,
    facts: Mapping[str, Any],
) -> Path:
    """Write `folder/epoch-NNNN` and remove all but the last `keep`.

    Args:
        facts: further plain values to record, such as the plan's digest.
    """
    final = folder / name(progress.epoch)
    partial = folder / f".writing-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for kept in ["current", *weights.sets]:
        _write(partial / f"{kept}.safetensors", weights.tensors(kept))
    _write(partial / "optimizer.safetensors", _optimizer_tensors(weights, optimizer))
    state = {**attrs.asdict(progress), **facts}
    (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
    for path in [*partial.iterdir(), partial]:
        flush(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    flush(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def name(epoch: int) -> str:
    """The folder of the checkpoint after `epoch`."""
    return f"epoch-{epoch:04d}"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    found = [path.parent for path in folder.glob(f"epoch-*/{STATE}")]
    return sorted(found, key=lambda path: int(path.name.removeprefix("epoch-")))


def load(path: Path, weights: Weights, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore weights, their sets and the optimizer in place; returns how far the run had come."""
    for kept in ["current", *weights.sets]:
        weights.restore(kept, load_file(path / f"{kept}.safetensors"))
    _restore_optimizer(weights, optimizer, load_file(path / "optimizer.safetensors"))
    state = json.loads((path / STATE).read_text())
    return Progress(state["epoch"], state["step"])


def _optimizer_tensors(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{path}/{key}": torch.as_tensor(value).to("cpu", copy=True)  # 8-bit moments share their scales
        for path, parameter in weights.parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(weights: Weights, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    for tag, value in tensors.items():
        path, _, key = tag.rpartition("/")
        parameter = weights.parameters[path]
        # Moments lie beside their parameter; AdamW's step counter on the CPU, that of 8 bits as a plain number.
        counter = value if value.is_floating_point() or value.dim() else int(value)
        optimizer.state[parameter][key] = value.to(parameter.device) if value.dim() else counter


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
