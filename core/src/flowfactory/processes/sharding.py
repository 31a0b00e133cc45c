"""Weights that lie divided among the processes: torch's FSDP2. Nothing else knows how.

A divided tensor is a `DTensor` of which each process holds some rows. A network is called as ever; each of its blocks
is put together while it computes. So every process has to call a divided network as often, in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

VIEWS = "FSDP2-wrapped module .* returned a view tensor"
"""What torch warns of lest somebody adds to such a view in place, which no network of diffusers does to its blocks'."""


def divide(network: nn.Module, mesh: DeviceMesh, prepare: Callable[[nn.Module], None]) -> None:
    """Divide a network's parameters in place; gradients are added up over the processes as they are divided.

    The entries of its lists of modules are its blocks, each divided, and later put together, by itself.

    Args:
        prepare: called on each part just before it is divided, so that only one is ever whole in its form.

    Raises:
        ValueError, NotImplementedError: torch cannot divide one of its parameters.
    """
    warnings.filterwarnings("ignore", VIEWS, UserWarning)
    blocks = [entry for child in network.children() if isinstance(child, nn.ModuleList) for entry in child]
    for module in [*blocks, network]:
        prepare(module)
        divided = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        divided.set_gradient_divide_factor(1.0)
        divided.set_force_sum_reduction_for_comms(True)
    assert isinstance(network, FSDPModule)
    network.unshard()  # Looks at which parameters are trained now, and not while LoRA happens to be off.
    network.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its rows. Where it is divided, every process has to ask at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """This process's rows of a tensor; all of them where it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Copies of `tensors`, whole and in main memory, made one after the other; none where they are not to be kept.

    Every process has to ask at the same time.
    """
    made = {}
    for name, tensor in tensors.items():
        entire = whole(tensor.detach())
        if keep:
            made[name] = entire.to("cpu", copy=True).contiguous()
    return made


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, equal on all processes, on the device of `model` and divided as it is."""
    moved = tensor.to(model.device)
    if not isinstance(model, DTensor):
        return moved
    return distribute_tensor(moved, model.device_mesh, model.placements, src_data_rank=None)


@torch.no_grad()
def exchange(parameter: nn.Parameter, stored: Tensor) -> Tensor:
    """Give a parameter the values of `stored` and return its own, by reference where it is not divided.

    FSDP2 keeps a buffer of its own behind a divided parameter, so there the values themselves change places.
    """
    if isinstance(parameter, DTensor):
        kept = parameter.detach().clone()
        parameter.copy_(stored)
        return stored.copy_(kept)
    parameter.data, stored = stored, parameter.data
    return stored
