"""Blocks of a network in main memory, whose weights are on the device only while they compute, and just before.

The weights of a block lie in one buffer, pinned where the device is a GPU. While a block is called, others take the
places of its parameters: those of a copy on the device. The copy of the next block is made meanwhile, by a CUDA stream
of its own. Of what autograd keeps for the backward pass, weights are replaced by a note of where they lie, and are
copied again when they are asked for, from the last block to the first. With gradient checkpointing the recomputation
calls the block once more; what it keeps are the parameters on the device, which is why they are not the block's own.

Only what is there when a network is loaded is streamed: LoRA, which is added later, stays on the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from flowfactory.errors import RunError
from flowfactory.plan.working import ALIGNED


@attrs.frozen(eq=False)
class Home:
    """Where the parameters of a block lie: a buffer in main memory, and the views of it that they are.

    places: of each parameter, the modules that have it, and under which names.
    """

    parameters: Sequence[nn.Parameter]
    places: Sequence[Sequence[tuple[nn.Module, str]]]
    buffer: Tensor
    views: Sequence[Tensor]


@attrs.frozen(eq=False)
class Copy:
    """That of a block on the device, and what to wait for before it is used or given up."""

    buffer: Tensor
    made: torch.cuda.Event | None

    def wait(self) -> None:
        """Let what is computed next begin when the copy is made."""
        if self.made is not None:
            torch.cuda.current_stream(self.buffer.device).wait_event(self.made)


@attrs.frozen
class Note:
    """What stands for a tensor of a block while autograd keeps it."""

    block: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Stream:
    """The blocks of one network, in the order in which they are called.

    Args:
        recomputed: whether blocks are called again in the backward pass (gradient checkpointing), so that nothing that
            they keep outlives their call.
    """

    def __init__(self, blocks: Sequence[Home], device: torch.device, recomputed: bool) -> None:
        self.blocks, self._device, self._recomputed = blocks, device, recomputed
        self._copies, self._last = dict[int, Copy](), -1
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._leaving = ExitStack()

    def enter(self, number: int) -> None:
        """A block is called: its parameters are on the device."""
        self._leaving.close()
        home, copy = self.blocks[number], self._copy(number)
        there = _views(copy.buffer, home.parameters)
        for parameter, places, view, copied in zip(home.parameters, home.places, home.views, there, strict=True):
            same = parameter.data_ptr() == view.data_ptr()  # else a set of weights from elsewhere is in its place
            lent = nn.Parameter(copied if same else parameter.data.to(self._device), requires_grad=False)
            for module, name in places:
                self._leaving.callback(module._parameters.__setitem__, name, parameter)
                module._parameters[name] = lent
        if torch.is_grad_enabled() and not self._recomputed:
            hooks = torch.autograd.graph.saved_tensors_hooks(lambda kept: self._note(number, kept), self._unpack)
            self._leaving.enter_context(hooks)

    def leave(self) -> None:
        """It has returned, or failed."""
        self._leaving.close()

    def _copy(self, number: int) -> Copy:
        """A block's copy, ready for what is computed next. That of the block to come is begun; all others are gone."""
        onward = number > self._last or number == 0
        ahead, self._last = number + 1 if onward else number - 1, number
        for other in [*self._copies.keys() - {number, ahead}]:
            self._copies.pop(other).wait()
        for wanted in (number, ahead):
            if wanted not in self._copies and 0 <= wanted < len(self.blocks):
                self._copies[wanted] = self._begin(self.blocks[wanted].buffer)
        self._copies[number].wait()
        return self._copies[number]

    def _begin(self, buffer: Tensor) -> Copy:
        there = torch.empty_like(buffer, device=self._device)
        if self._beside is None:
            return Copy(there.copy_(buffer), None)
        self._beside.wait_stream(torch.cuda.current_stream(self._device))  # whose memory it was until now
        with torch.cuda.stream(self._beside):
            there.copy_(buffer, non_blocking=True)
            return Copy(there, self._beside.record_event())

    def _note(self, number: int, kept: Tensor) -> Tensor | Note:
        held = self._copies[number].buffer.untyped_storage().data_ptr()
        if kept.untyped_storage().data_ptr() != held:
            return kept
        return Note(number, kept.dtype, tuple(kept.shape), kept.stride(), int(kept.storage_offset()))

    def _unpack(self, kept: Tensor | Note) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return self._copy(kept.block).buffer.view(kept.dtype).as_strided(kept.size, kept.stride, kept.offset)


def stream(network: nn.Module, device: torch.device, recomputed: bool) -> None:
    """Put a network on `device`, but for the weights of its blocks, which are streamed there.

    The entries of its lists of modules are its blocks.

    Raises:
        RunError: it has none.
    """
    blocks = [entry for child in network.children() if isinstance(child, nn.ModuleList) for entry in child]
    first = next(network.parameters())  # by which diffusers tells where a network is
    homes = [_home(block, first, pinned=device.type == "cuda") for block in blocks]
    if not homes:
        kind = type(network).__name__
        raise RunError(f'[memory] offload: "weights" are those of repeated blocks, and {kind} has none; leave it out')
    inside = {id(parameter) for home in homes for parameter in home.parameters}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in inside:
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    made = Stream(homes, device, recomputed)
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(_entering(made, number), prepend=True)
        block.register_forward_hook(lambda *_: made.leave(), always_call=True)


def _entering(made: Stream, number: int) -> Any:
    return lambda *_: made.enter(number)


def _home(block: nn.Module, first: nn.Parameter, pinned: bool) -> Home:
    """Move the parameters of a block into one buffer of main memory, but for `first`."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {p: [] for p in block.parameters() if p is not first}
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter is not first:
                places[parameter].append((module, name))
    parameters = [*places]
    buffer = torch.empty(sum(map(_room, parameters)), dtype=torch.uint8)
    if pinned:
        _pin(buffer)
    views = [*_views(buffer, parameters)]
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view.copy_(parameter.data)
    return Home(parameters, [*places.values()], buffer, views)


def _views(buffer: Tensor, parameters: Sequence[nn.Parameter]) -> Iterator[Tensor]:
    """One for each parameter, of its type and shape, one after the other."""
    start = 0
    for parameter in parameters:
        own = buffer[start : start + parameter.numel() * parameter.element_size()]
        yield own.view(parameter.dtype).view(parameter.shape)
        start += _room(parameter)


def _room(parameter: nn.Parameter) -> int:
    return -(-parameter.numel() * parameter.element_size() // ALIGNED) * ALIGNED


def _pin(buffer: Tensor) -> None:
    """Pin memory where it lies; torch's own way takes up to twice as much.

    Raises:
        RunError: the system does not let so much be pinned.
    """
    driver: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if failed := int(driver.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)):
        limit = "see `ulimit -l`, and how much main memory is free"
        raise RunError(f'[memory] offload: "weights" cannot be pinned in main memory (CUDA error {failed}); {limit}')
    weakref.finalize(buffer, driver.cudaHostUnregister, buffer.data_ptr()).atexit = False
