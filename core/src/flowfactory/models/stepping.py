"""The stand-in for a pipeline's scheduler: it gives the noise levels it is told to, and ends the call at a step."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import attrs
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor, nn

FRAMES = 2
"""The axis of frames in latents `(B, channels, frames, height, width)`."""


class Stop(Exception):
    """Ends a pipeline's call early; `tap.run` returns it."""


class Reached(Stop):
    """The scheduler's step was called: what the network predicted `(B, …)`, and the latents `(B, …)` it was for."""

    def __init__(self, model_output: Tensor, sample: Tensor) -> None:
        super().__init__()
        self.model_output = model_output
        self.sample = sample

    def part(self, place: tuple[slice, ...] | None) -> Reached:
        """Of these latents only, if not of all."""
        return self if place is None else Reached(self.model_output[place], self.sample[place])


@attrs.define(eq=False)
class Watch:
    """What a stand-in shares with its copies; a pipeline may step every frame with a copy of its scheduler.

    pinned: noise levels and timesteps to have, whatever is set. wanted: numbers of the steps to note; the last ends the
    call. still: steps change nothing. number: of the step that comes next. noted: by number. rises: the first step went
    where the velocity points, and so to more noise.
    """

    owner: Any
    pinned: tuple[Tensor, Tensor] | None
    wanted: Collection[int]
    still: bool
    number: int = 0
    rises: bool = False
    noted: dict[int, Reached] = attrs.field(factory=dict)
    copies: list[Any] = attrs.field(factory=list)
    frames: dict[int, Reached] = attrs.field(factory=dict)

    def __deepcopy__(self, memo: Any) -> Watch:
        return self

    def note(self, stepping: Any, model_output: Tensor, sample: Tensor) -> None:
        """One step, or one frame of it; a step of some frames only is none.

        Raises:
            Reached: it is the last wanted.
        """
        last = self.number == max(self.wanted) and not self.copies
        self.frames[id(stepping)] = Reached(model_output, sample if last else sample.clone())  # some step in place
        if len(self.frames) < len(self.copies):
            return
        frames = [*self.frames.values()]
        whole = _joined(frames) if self.copies else frames[0]
        self.frames.clear()
        if self.number in self.wanted:
            self.noted[self.number] = whole
            if self.number == max(self.wanted):
                raise whole
        self.number += 1


def scheduler(
    original: Any,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    wanted: Collection[int] = (0,),
    still: bool = False,
) -> Any:
    """A copy of `original` that notes the `wanted` steps, and at the last raises `Reached`.

    Its schedule, if given, is always this one. Its methods are replaced, not its class, which pipelines look at.
    """
    tapped = copy.copy(original)
    pinned = None if sigmas is None else (torch.tensor(sigmas), torch.tensor(timesteps, dtype=torch.float64))
    tapped.watch = Watch(tapped, pinned, wanted, still)
    tapped.set_timesteps = MethodType(_set_timesteps(original.__class__), tapped)
    tapped.step = MethodType(_step, tapped)
    return tapped


@functools.cache
def _set_timesteps(base: Any) -> Any:
    @functools.wraps(base.set_timesteps)  # pipelines look at its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        base.set_timesteps(self, *args, **kwargs)
        if self is not self.watch.owner:
            self.watch.copies.append(self)
        if self.watch.pinned is not None:
            sigmas, timesteps = self.watch.pinned
            self.sigmas, self.timesteps = sigmas.to(self.sigmas), timesteps.to(self.timesteps)

    return set_timesteps


def _step(self: Any, model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A step of the scheduler's own, in the precision of the latents that it is given.

    With a time for each token it is told the way to data, where velocities here lead to noise.
    """
    velocity = model_output if kwargs.get("per_token_timesteps") is None else -model_output
    self.watch.note(self, velocity, sample)
    if self.watch.pinned is not None or self.watch.still:
        made = sample
    else:
        stepped = type(self).step(self, model_output, timestep, sample, *args, **kwargs | {"return_dict": False})
        made = stepped[0].to(sample.dtype)
        if self.watch.number == 1:
            self.watch.rises = bool(((made - sample) * velocity).sum() > 0)
    return SchedulerOutput(prev_sample=made) if kwargs.get("return_dict", True) else (made,)


def _joined(frames: Sequence[Reached]) -> Reached:
    outputs, samples = ([getattr(one, name) for one in frames] for name in ("model_output", "sample"))
    return Reached(torch.stack(outputs, FRAMES), torch.stack(samples, FRAMES))


@contextmanager
def resting(networks: Mapping[str, nn.Module], watch: Watch) -> Iterator[None]:
    """Let networks compute in the wanted steps only; in the others they give answers of earlier steps again."""
    answers: dict[tuple[str, int], Any] = {}
    made: Counter[tuple[str, int]] = Counter()

    def answering(name: str, forward: Any) -> Any:
        @functools.wraps(forward)
        def answer(*args: Any, **kwargs: Any) -> Any:
            key = name, made[name, watch.number]
            made[name, watch.number] += 1
            if watch.number in watch.wanted or key not in answers:
                answers[key] = forward(*args, **kwargs)
            return copy.deepcopy(answers[key])

        return answer

    kept = {name: vars(network)["forward"] for name, network in networks.items() if "forward" in vars(network)}
    for name, network in networks.items():
        vars(network)["forward"] = answering(name, network.forward)
    try:
        yield
    finally:
        for name, network in networks.items():
            del vars(network)["forward"]
            if name in kept:
                vars(network)["forward"] = kept[name]
