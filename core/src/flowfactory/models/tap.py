"""How a diffusers pipeline is looked at, and called with stand-ins for some of its members."""

from __future__ import annotations

import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL import Image
from torch import Tensor, nn

from flowfactory.errors import RunError
from flowfactory.models.stepping import Stop

IMAGE = "image"
"""Among recorded calls: not a method, but the sizes of condition images."""

ENCODER = r"(text|image|vision_language)_encoder(_\d)?"
"""Names of a pipeline's parts that only turn prompts and images into tensors."""


Place = tuple[slice, ...]
"""Where some latents are among others, which begin or end with them along each axis."""


class AtTheVae(Stop):
    """The pipeline is about to encode an image or a video by itself, in none of its methods for that."""


class Refused(RunError, ValueError):
    """A pipeline that cannot be trained, and why, in words."""


def refusal(path: str, pipeline: str, why: str) -> Refused:
    """A pipeline of this class, from this checkpoint, is refused."""
    return Refused(f"{path} ({pipeline}) cannot be trained here: {why}")


def words(error: Exception) -> str:
    """What a pipeline raised, for a person: its own words, or which place of its code failed and what may help."""
    if isinstance(error, ImportError):
        extra = '; pip install "flowfactory[vision]"' if "torchvision" in str(error).lower() else ""
        return f"it needs a package that is not installed here{extra}: {_line(error)}"
    if isinstance(error, ValueError) and str(error):
        return f"in its own words: {_line(error)}"
    how = "see whether it runs by itself, called from Python with the same prompt and size; if so, report this"
    return f"its code fails with {failure(error)}; {how}"


def failure(error: Exception) -> str:
    """What kind of error it is, what it says, and where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{'/'.join(Path(frame.filename).parts[-2:])}, line {frame.lineno}"
    return f"{type(error).__name__}: {_line(error)} ({where})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def undecorated(pipe: DiffusionPipeline) -> Callable[..., Any]:
    """The pipeline's `__call__` as written, without `torch.no_grad`."""
    call: Callable[..., Any] = inspect.unwrap(type(pipe).__call__)
    return call


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
    """The pipeline's own methods that turn prompts and images into tensors, or into other prompts."""
    return {name: getattr(pipe, name) for name in encoding(pipe.__class__)}


@functools.cache
def encoding(pipeline: Any) -> tuple[str, ...]:
    """The names of such methods of a class."""
    return tuple(name for name in dir(pipeline) if _encodes(name, getattr(pipeline, name)))


def _encodes(name: str, member: Any) -> bool:
    if re.match("_?encode_", name):
        return True
    if name.startswith(("__", "check_", "prepare_")) or not inspect.isfunction(function := inspect.unwrap(member)):
        return False
    return any(re.fullmatch(ENCODER, used) for used in function.__code__.co_names)


def run(pipe: DiffusionPipeline, members: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """Call the pipeline with some of its members replaced: the `Stop` that ended it, or what it returned."""
    with replaced(pipe, members):
        try:
            return undecorated(pipe)(pipe, **arguments)
        except Stop as stop:
            return stop.with_traceback(None)


@contextmanager
def replaced(owner: Any, members: Mapping[str, Any]) -> Iterator[None]:
    """While active, an object has these members in the place of its class's, or of those it was given before."""
    kept = {name: vars(owner)[name] for name in members if name in vars(owner)}
    vars(owner).update(members)
    try:
        yield
    finally:
        for name in members:
            del vars(owner)[name]
        vars(owner).update(kept)


@contextmanager
def stopping_at(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Stop the pipeline before the first call of any of `networks`, and before who puts divided weights together."""

    def stop(*_: Any) -> None:
        raise Stop

    hooks = [network.register_forward_pre_hook(stop, prepend=True) for network in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def checking_all_but_prompts(pipe: DiffusionPipeline) -> dict[str, Callable[..., None]]:
    """The pipeline's `check_inputs`, if it has that, but for faults of prompts, in whose place stand-ins are."""
    if "check_inputs" not in dir(type(pipe)):
        return {}
    original: Any = pipe.check_inputs

    def check_inputs(*args: Any, **kwargs: Any) -> None:
        try:
            original(*args, **kwargs)
        except ValueError as error:
            if "`prompt`" not in str(error):
                raise

    return {"check_inputs": check_inputs}


def prepares_latents(pipe: DiffusionPipeline) -> bool:
    """Whether it has the method that most have."""
    return "prepare_latents" in dir(type(pipe))


def replacing_latents(pipe: DiffusionPipeline, x: Tensor, place: Place | None = None) -> Callable[..., Any]:
    """The pipeline's `prepare_latents`, with `x` for the latents it returns first, or at a place among these."""
    original = pipe.prepare_latents

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        latents, *rest = made if isinstance(made, tuple) else (made,)
        given = x.to(latents.device, latents.dtype)
        if place is not None:
            latents[place] = given
            given = latents
        return (given, *rest) if isinstance(made, tuple) else given

    return prepare_latents


@contextmanager
def stopping_at_the_vae(pipe: DiffusionPipeline, when: Callable[[], bool]) -> Iterator[None]:
    """Stop the pipeline before it encodes an image or a whole video by itself, which is of no use and takes long."""
    vae = pipe.components.get("vae")
    if vae is None:
        yield
        return
    encode = vae.encode

    def stop(*args: Any, **kwargs: Any) -> Any:
        if when():
            raise AtTheVae
        return encode(*args, **kwargs)

    with replaced(vae, {"encode": stop}):
        yield


@contextmanager
def steady_vae(pipe: DiffusionPipeline) -> Iterator[list[Any]]:
    """Whatever the pipeline draws of what its autoencoder makes of an image is always the same draw.

    Gives what it has made, as far as the pipeline has come.
    """
    vae, answers = pipe.components.get("vae"), list[Any]()
    if vae is None:
        yield answers
        return
    encode = vae.encode

    def steadied(*args: Any, **kwargs: Any) -> Any:
        made = encode(*args, **kwargs)
        answers.append(made)
        if isinstance(made, AutoencoderKLOutput):
            draw = made.latent_dist.sample
            made.latent_dist.sample = lambda generator=None: draw(torch.Generator().manual_seed(0))
        return made

    with replaced(vae, {"encode": steadied}):
        yield answers


@contextmanager
def noting_latents(pipe: DiffusionPipeline, noted: list[Tensor]) -> Iterator[None]:
    """Add to `noted` the latents that `prepare_latents` returns first."""
    if not prepares_latents(pipe):
        yield
        return
    original = pipe.prepare_latents

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        noted.append(made[0] if isinstance(made, tuple) else made)
        return made

    with replaced(pipe, {"prepare_latents": prepare_latents}):
        yield


@contextmanager
def seeded(pipe: DiffusionPipeline, seed: int = 0) -> Iterator[None]:
    """Whatever the pipeline draws follows from `seed`, and nobody else's random numbers change."""
    # The pipeline's own `device` looks at every layer, and torch's `manual_seed` keeps a stack for cards not in use.
    firsts = [next(part.parameters(), None) for part in modules(pipe).values()]
    devices = [first.device for first in firsts if first is not None and first.device.type not in ("cpu", "meta")]
    with torch.random.fork_rng([device for device in devices[:1] if device.type == "cuda"]):
        (torch if devices else torch.default_generator).manual_seed(seed)
        yield


def outline(image: Image.Image, batch: int) -> Tensor:
    """An empty tensor `(batch, height, width, 0)`: the size of a condition image, to be kept among conditions."""
    return torch.empty(batch, image.height, image.width, 0)


def pixels(image: Image.Image) -> Tensor:
    """A condition image `(1, height, width, 3)` in bytes, to be kept whole among conditions."""
    return torch.from_numpy(np.array(image.convert("RGB")))[None]


def picture(kept: Tensor) -> Image.Image:
    """The condition image that was kept: an image `(batch, height, width, 3)`, or its `outline`, which is blank."""
    if kept.shape[3]:
        return Image.fromarray(kept[0].cpu().numpy())
    return Image.new("RGB", (kept.shape[2], kept.shape[1]))
