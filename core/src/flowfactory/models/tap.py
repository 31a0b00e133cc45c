"""How a diffusers pipeline is made to stop where the tap wants it: stand-ins for its scheduler and its methods."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from flowfactory.builtin import PipelineSpec

IMAGE = "image"
"""Among recorded calls: not a method, but the sizes of condition images."""


class Stop(Exception):
    """Ends a pipeline's call early; `run` returns it."""


class Reached(Stop):
    """The scheduler's step was called: what the network predicted `(B, …)`, and the latents `(B, …)` it was for."""

    def __init__(self, model_output: Tensor, sample: Tensor) -> None:
        super().__init__()
        self.model_output = model_output
        self.sample = sample


def read(spec: PipelineSpec, dtype: torch.dtype, encoders: bool = True) -> DiffusionPipeline:
    """The pipeline a spec names, every weight in `dtype`; with or without text and image encoders.

    Raises:
        ValueError: there is no pipeline there, or it cannot be read.
    """
    path, where = spec.path, {"revision": spec.revision}
    with reading(path):
        parts = DiffusionPipeline.load_config(path, **where)
        given: dict[str, Any] = {}
        if not encoders:
            given = {name: None for name in parts if re.match("(text|image)_encoder", name)}
        if spec.single_file is not None:
            given |= _network_from(spec, parts, dtype)
        return DiffusionPipeline.from_pretrained(path, variant=spec.variant, dtype=dtype, **where, **given)


def _network_from(spec: PipelineSpec, parts: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The one network of a pipeline, from `single_file`."""
    file = str(spec.single_file)
    names = [name for name, what in parts.items() if name.startswith("transformer") and what[0] is not None]
    if len(names) != 1:
        raise ValueError(f"`single_file` holds one network, and the pipeline has {len(names)}: {', '.join(names)}")
    (name,) = names
    network: Any = getattr(diffusers, parts[name][1])
    options: dict[str, Any] = {"config": spec.path, "subfolder": name, "revision": spec.revision, "dtype": dtype}
    if file.endswith(".gguf"):
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    with reading(file):
        return {name: network.from_single_file(file, **options)}


@contextmanager
def reading(path: str) -> Iterator[None]:
    """What a library says of a checkpoint it cannot read is said with its name.

    Raises:
        ValueError: naming `path` and the library's reason.
    """
    try:
        yield
    except Unreadable:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise Unreadable(f"{path} cannot be read as a diffusers pipeline: {error}") from error
    except SafetensorError as error:
        raise Unreadable(f"{path} has weights that are damaged or are none: {error}") from error


class Unreadable(ValueError):
    """A checkpoint cannot be read; the message names it."""


def undecorated(pipe: DiffusionPipeline) -> Callable[..., Any]:
    """The pipeline's `__call__` as written, without `torch.no_grad`."""
    call: Callable[..., Any] = inspect.unwrap(type(pipe).__call__)
    return call


def refuse_unless_flow_matching(pipe: DiffusionPipeline) -> None:
    """Raises:
    ValueError: the pipeline's scheduler or arguments show that it does not carry noise to data along a velocity.
    """
    scheduler = pipe.scheduler
    name, config = type(scheduler).__name__, scheduler.config
    flow = name.startswith("FlowMatch") or (
        config.get("use_flow_sigmas", False) and config.get("prediction_type") == "flow_prediction"
    )
    reasons = {
        f"its scheduler {name} is not set up for flow matching": not flow,
        f"its scheduler {name} calls the network several times a step": scheduler.order != 1,
        "its noise levels rise": config.get("invert_sigmas", False),
        "it starts from an image instead of noise": {"strength", "mask_image"} & parameters(pipe).keys(),
        "it has no transformer to train": not networks(pipe),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"{type(pipe).__name__} cannot be trained here: {reason}")


def parameters(pipe: DiffusionPipeline) -> Mapping[str, inspect.Parameter]:
    """What the pipeline's `__call__` takes."""
    return inspect.signature(undecorated(pipe)).parameters


def networks(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """The networks that predict velocities; usually one, two where each has its own range of noise levels."""
    return {name: module for name, module in modules(pipe).items() if name.startswith("transformer")}


def embeds_guidance(pipe: DiffusionPipeline) -> bool:
    """Whether the network is distilled: told the guidance scale instead of being called with and without a prompt."""
    configs: list[Any] = [network.config for network in networks(pipe).values()]
    return any(config.get("guidance_embeds", False) for config in configs)


def modules(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Everything with weights, by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def encode_methods(pipe: DiffusionPipeline) -> dict[str, Callable[..., Any]]:
    """The pipeline's own methods that turn prompts and images into tensors."""
    return {name: getattr(pipe, name) for name in dir(type(pipe)) if re.match("_?encode_", name)}


def scheduler(
    original: Any, sigmas: Sequence[float] | None = None, timesteps: Sequence[float] | None = None, steps: int = 0
) -> Any:
    """A copy of `original` whose `step`, after `steps` real ones, raises `Reached`.

    Its schedule, if given, is always this one.
    """
    tapped = copy.copy(original)
    base: Any = type(original)
    tapped.__class__ = _tapped(base)
    tapped.pinned = None if sigmas is None else (torch.tensor(sigmas), torch.tensor(timesteps, dtype=torch.float64))
    tapped.real_steps = steps
    return tapped


@functools.cache
def _tapped(base: Any) -> Any:
    class Tapped(base):  # type: ignore[misc]
        sigmas: Tensor
        timesteps: Tensor
        real_steps: int

        @functools.wraps(base.set_timesteps)  # pipelines look at its signature
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            if self.pinned is not None:
                sigmas, timesteps = self.pinned
                self.sigmas, self.timesteps = sigmas.to(self.sigmas), timesteps.to(self.timesteps)

        def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.real_steps == 0:
                raise Reached(model_output, sample)
            self.real_steps -= 1
            return super().step(model_output, timestep, sample, *args, **kwargs)

    return Tapped


def run(pipe: DiffusionPipeline, members: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """Call the pipeline with some of its members replaced: the `Stop` that ended it, or what it returned."""
    kept = {name: vars(pipe)[name] for name in members if name in vars(pipe)}
    vars(pipe).update(members)
    try:
        return undecorated(pipe)(pipe, **arguments)
    except Stop as stop:
        return stop.with_traceback(None)
    finally:
        for name in members:
            del vars(pipe)[name]
        vars(pipe).update(kept)


@contextmanager
def stopping_at(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Stop the pipeline before the first call of any of `networks`."""

    def stop(*_: Any) -> None:
        raise Stop

    hooks = [network.register_forward_pre_hook(stop) for network in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def replacing_latents(pipe: DiffusionPipeline, x: Tensor) -> Callable[..., Any]:
    """The pipeline's `prepare_latents`, with `x` for the latents it returns first."""
    original = pipe.prepare_latents

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        latents, *rest = made if isinstance(made, tuple) else (made,)
        given = x.to(latents.device, latents.dtype)
        return (given, *rest) if isinstance(made, tuple) else given

    return prepare_latents


@contextmanager
def seeded(pipe: DiffusionPipeline, seed: int = 0) -> Iterator[None]:
    """Whatever the pipeline draws follows from `seed`, and nobody else's random numbers change."""
    with torch.random.fork_rng([pipe.device] if pipe.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def outline(image: Image.Image, batch: int) -> Tensor:
    """An empty tensor `(batch, height, width, 0)`: the size of a condition image, to be kept among conditions."""
    return torch.empty(batch, image.height, image.width, 0)


def picture(kept: Tensor) -> Image.Image:
    """The condition image that was kept: an image `(batch, height, width, 3)`, or its `outline`, which is blank."""
    if kept.shape[3]:
        return Image.fromarray(kept[0].cpu().numpy())
    return Image.new("RGB", (kept.shape[2], kept.shape[1]))
