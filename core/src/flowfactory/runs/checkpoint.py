"""Checkpoints: complete or absent, never in between.

A checkpoint is written under a temporary name, flushed to the disk and renamed. Everything in it is tensors
(safetensors) and plain JSON; random state needs no saving (see `seeds`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowfactory.contracts.trainer import Trainer
from flowfactory.errors import RunError, listed, shown
from flowfactory.policy.finite import all_finite
from flowfactory.policy.loras import ALPHAS
from flowfactory.policy.resting import put_aside
from flowfactory.policy.weights import Weights
from flowfactory.processes.sharding import gathered, like, own
from flowfactory.runs import archive
from flowfactory.runs.archive import OPTIMIZER, TRAINER, Origin, is_set
from flowfactory.runs.files import PARTIAL, flush, settle, writing


@attrs.frozen
class Progress:
    """How far a run has come: finished epochs and optimizer steps."""

    epoch: int = 0
    step: int = 0


def save(
    folder: Path,
    progress: Progress,
    weights: Weights,
    optimizers: Mapping[str, torch.optim.Optimizer],
    remembered: Mapping[str, Tensor],
    origin: Origin,
    write: bool = True,
) -> Path:
    """Write `folder/epoch-NNNN`. Where weights are divided, every process has to take part.

    Args:
        remembered: what the trainer's `state` gave. write: whether this process is the one that writes.

    Raises:
        RunError: the disk is full or cannot be written; nothing is left of the attempt.
    """
    final = folder / archive.name(progress.epoch)
    contents = _contents(weights, optimizers, remembered, keep=write)
    if not write:
        deque(contents, maxlen=0)
        return final
    partial = folder / f"{PARTIAL}{final.name}"
    with writing(final):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            said = {ALPHAS: json.dumps(weights.alphas)} if weights.alphas else None
            for stem, tensors in contents:
                _write(partial / f"{stem}.safetensors", tensors, said if is_set(stem) else None)
            archive.seal(partial, progress.epoch, progress.step, origin)
            settle(partial)
            partial.rename(final)
            flush(folder)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return final


def held(weights: Weights, optimizers: Mapping[str, torch.optim.Optimizer]) -> Callable[[], bool]:
    """Copy all weights and moments into main memory, of divided ones this process's share; returns what puts them back
    in place, and says so."""
    sets = {kept: _copied(weights.tensors(kept)) for kept in ["current", *weights.sets]}
    moments = {role: _copied(_optimizer_tensors(weights, optimizer)) for role, optimizer in optimizers.items()}

    @torch.no_grad()
    def put_back() -> bool:
        for kept, tensors in sets.items():
            for name, tensor in weights.tensors(kept).items():
                own(tensor).copy_(tensors[name])
        for role, tensors in moments.items():
            _put_back(weights, optimizers[role], tensors)
        return True

    return put_back


def steps(optimizer: torch.optim.Optimizer) -> float:
    """A number that rises with each step of an optimizer."""
    return sum(float(state["step"]) for state in optimizer.state.values() if "step" in state)


def load(
    path: Path, weights: Weights, optimizers: Mapping[str, torch.optim.Optimizer], trainer: Trainer[Any]
) -> Progress:
    """Restore weights, their sets, the optimizers and the trainer in place; returns how far the run had come.

    The checkpoint is taken to be intact (see `archive.damage`).

    Raises:
        RunError: its weights are others than this run's, as when a plugin of another version has made it; or a number
            in it is not finite.
    """
    state = archive.read(path)
    sets = {kept: path / f"{kept}.safetensors" for kept in ["current", *weights.sets]}
    saved = {stem for file in state.files if is_set(stem := Path(file).stem)}
    if saved != sets.keys():
        raise RunError(f"{shown(path)} has the weights {listed(sorted(saved))}; this run keeps {listed(sorted(sets))}")
    for kept, file in sets.items():
        weights.restore(kept, _fitting(file, all_finite(load_file(file), file), weights.tensors(kept)))
    for role, optimizer in optimizers.items():
        moments = path / f"{_moments(role)}.safetensors"
        _restore_optimizer(weights, optimizer, all_finite(load_file(moments), moments))
        put_aside(optimizer)
    if (remembered := path / f"{TRAINER}.safetensors").name in state.files:
        trainer.restore(load_file(remembered))
    return Progress(state.epoch, state.step)


def _moments(role: str) -> str:
    return OPTIMIZER if role == "current" else f"{OPTIMIZER}.{role}"


def _fitting(file: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors, once it is known that they are those which are expected."""
    has, wants = ({name: tuple(t.shape) for name, t in one.items()} for one in (tensors, expected))
    different = sorted(name for name in has.keys() | wants.keys() if has.get(name) != wants.get(name))
    if different:
        name = different[0]
        what = f"{name} has the shape {has.get(name, 'none')} there, {wants.get(name, 'none')} in this run"
        raise RunError(f"{shown(file)} is not of this run's network: {what} ({len(different)} such weights)")
    return tensors


def _contents(
    weights: Weights, optimizers: Mapping[str, torch.optim.Optimizer], remembered: Mapping[str, Tensor], keep: bool
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What the files hold, whole, by their stems; one at a time is in memory, and none where it is not to be kept."""
    for kept in ["current", *weights.sets]:
        yield kept, gathered(weights.tensors(kept), keep)
    for role, optimizer in optimizers.items():
        yield _moments(role), gathered(_optimizer_tensors(weights, optimizer), keep)
    if remembered:
        yield TRAINER, {name: tensor.detach().contiguous() for name, tensor in remembered.items()}


def _optimizer_tensors(weights: Weights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{path}/{key}": torch.as_tensor(value)
        for path, parameter in weights.parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(weights: Weights, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    for tag, value in tensors.items():
        path, _, key = tag.rpartition("/")
        parameter = weights.parameters[path]
        # Moments lie beside their parameter; AdamW's step counter on the CPU, that of 8 bits as a plain number.
        counter = value if value.is_floating_point() or value.dim() else int(value)
        optimizer.state[parameter][key] = like(value, parameter) if value.dim() else counter


def _put_back(weights: Weights, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `_optimizer_tensors` found, in place, and none that it did not."""
    for path, parameter in weights.parameters.items():
        for key, value in [*optimizer.state.get(parameter, {}).items()]:
            before = tensors.get(f"{path}/{key}")
            if before is None:
                del optimizer.state[parameter]
                break
            if isinstance(value, Tensor):
                own(value).copy_(before)
            else:
                optimizer.state[parameter][key] = type(value)(before)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: own(tensor.detach()).to("cpu", copy=True) for name, tensor in tensors.items()}


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> None:
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        said = re.search(r"\(os error (\d+)\)", str(error))
        raise (OSError(int(said[1]), os.strerror(int(said[1]))) if said else OSError(str(error))) from error
