"""Floating-point operations: what a model's passes take, and what this machine can do."""

from __future__ import annotations

import time

import attrs
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowfactory.builtin import PipelineSpec
from flowfactory.data.sources import pools
from flowfactory.processes.distributed import DTYPES
from flowfactory.sampling.epochs import rows_used
from flowfactory.training.optimise import Learner


@attrs.frozen
class Flops:
    """Operations of one sample's pass without a backward pass, and of one with; a second's worth of matrix products."""

    forward: int
    trained: int
    ceiling: float


def measure(learner: Learner) -> Flops | None:
    """What the model's matrix products and attention take, counted in one pass each.

    With gradient checkpointing a forward pass is taken off: to recompute is no work of the model's. `None` where
    operations cannot be seen: in compiled blocks and in quantized ones.
    """
    own = learner.spec.model.spec
    if learner.spec.memory.compile or (isinstance(own, PipelineSpec) and own.quantize is not None):
        return None
    with torch.no_grad():
        forward = _count(learner)
    trained = _count(learner) - (forward if learner.spec.memory.gradient_checkpointing else 0)
    learner.optimizers["current"].zero_grad()
    learner.policy.read_counts()
    learner.instruments.stopwatch.read()
    return Flops(forward, trained, ceiling(learner.processes.device, DTYPES[learner.spec.run.precision]))


def ceiling(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations per second of the fastest of some large square matrix products."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def _count(learner: Learner) -> int:
    """Operations of one sample's velocity, and of its backward pass where gradients are on."""
    device, policy = learner.processes.device, learner.policy
    x = torch.zeros(1, *policy.latent_shape(), device=device)
    level = policy.sigmas(learner.spec.sampling.steps)[1].to(device).expand(1)
    spec = learner.spec
    (row, *_) = rows_used(spec.run.seed, range(1, 2), pools(spec.data, learner.conditions.rows), spec.sampling.prompts)
    conditions = learner.conditions.batch([row], device)
    with FlopCounterMode(display=False) as counter:
        v = policy.velocity(x, level, conditions)
        if torch.is_grad_enabled():
            torch.autograd.backward(v.float().square().mean())
    return int(counter.get_total_flops())
