"""Numbers that are not finite (NaN or infinite) end a run, on every process together.

They do so before they reach the weights, so that every checkpoint is finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flowfactory.errors import RunError, listed, shown
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import Processes

SMALLER = "start a new run with a smaller [optimizer] lr or clip_norm"


class Diverged(RunError):
    """Numbers of a run are not finite. Going on from its last checkpoint would end in the same way."""

    repeats = True


class Ruined(Diverged):
    """The weights are finite, and what they make is not: no checkpoint of them may take the place of an earlier one."""


def check_step(processes: Processes, where: str, numbers: Mapping[str, float]) -> None:
    """Before an optimizer step: end the run if a loss or the norm of the gradient is not finite on any process.

    Raises:
        Diverged: on the main process; `PeerLost` on the others.
    """
    own = [name for name, value in numbers.items() if not math.isfinite(value)]
    if found := list(dict.fromkeys(processes.gather_objects(own))):
        what = f"{where}: not finite: {listed(found)}; this step was not made, so that the weights still are"
        processes.refuse(f"{what}. As the same numbers would come again, {SMALLER}", Diverged)


def check_weights(processes: Processes, where: str, weights: Weights) -> None:
    """After an optimizer step: end the run if it left a weight that is not finite on any process.

    Raises:
        Diverged: on the main process; `PeerLost` on the others.
    """
    if processes.any(not weights.finite()):
        processes.refuse(f"{where}: the optimizer has made weights that are not finite; {SMALLER}", Diverged)


def check_samples(processes: Processes, where: str, latents: bool, media: bool, trained: bool) -> None:
    """After sampling: end the run if latents, or what they decode to, are not finite on any process.

    So that nobody blames a reward for what it says of such media.

    Args:
        latents, media: whether this process's are finite. trained: whether any optimizer step has been made.

    Raises:
        Ruined: on the main process; `PeerLost` on the others.
    """
    if processes.any(not latents):
        early = "no weight has been trained yet: look at [sampling] guidance, [run] precision and [scheduler]"
        late = f"training has driven the weights too far; {SMALLER}"
        processes.refuse(f"{where}: the weights give latents that are not finite; {late if trained else early}", Ruined)
    if processes.any(not media):
        what = "the latents are finite, and what they decode to is not"
        processes.refuse(f"{where}: {what}; [run] precision may be too narrow for the model's decoder", Ruined)


def all_finite(tensors: Mapping[str, Tensor], file: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint's file, once it is known that every number in them is finite.

    Raises:
        RunError: one is not; the message names the file and the first such tensor.
    """
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        what = f"{len(broken)} of {len(tensors)} tensors hold numbers that are not finite, `{broken[0]}` first"
        raise RunError(f"{shown(file)}: {what}; its run had diverged by then. Take an earlier checkpoint, or {SMALLER}")
    return tensors
