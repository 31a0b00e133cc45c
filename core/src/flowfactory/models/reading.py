"""How the pipeline that a spec names is read, and what is said where it cannot be, or cannot be trained."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError
from torch import nn

from flowfactory.builtin import PipelineSpec
from flowfactory.data.refusals import fetched, refusal
from flowfactory.models import tap
from flowfactory.plan import checkpoint

GIVEN = {"self", "prompt", "image", "images"}
"""Arguments of a pipeline's call that rows have values for."""

SIZES = {"height", "width", "grid_h", "grid_w"}
PIECES = {"num_latent_frames_per_chunk", "latent_window_size", "temporal_tile_size"}
MASKS = {"mask_image", "mask_video"}
"""Names that arguments have for a size, for the length of a piece of a video, and for what is to be filled in."""


def read(
    spec: PipelineSpec, dtype: torch.dtype, encoders: bool = True, expected: type[Any] | None = None
) -> DiffusionPipeline:
    """The pipeline a spec names, every weight in `dtype`; with or without text and image encoders.

    Args:
        expected: what it has to be, if not anything; looked at before weights are read.

    Raises:
        ValueError: there is no pipeline there, or it cannot be read, or it is another one.
    """
    with reading(spec.path):
        if Path(spec.path).is_absolute():
            return _read(spec, dtype, encoders, expected)
        return fetched(lambda: _read(spec, dtype, encoders, expected), spec.path)


def _read(spec: PipelineSpec, dtype: torch.dtype, encoders: bool, expected: type[Any] | None) -> DiffusionPipeline:
    path, where = spec.path, {"revision": spec.revision}
    parts = DiffusionPipeline.load_config(path, **where)
    _refuse_by_class(path, str(parts["_class_name"]), expected)
    given: dict[str, Any] = {}
    if not encoders:
        given = {name: None for name in parts if re.fullmatch(tap.ENCODER, name)}
    if spec.single_file is not None:
        given |= _network_from(spec, parts, dtype)
    pipe = DiffusionPipeline.from_pretrained(path, variant=spec.variant, dtype=dtype, **where, **given)
    for name in [name for name, part in given.items() if part is None]:
        setattr(pipe, name, None)  # diffusers reads those all the same that a class has a default for
    for name in tap.modules(pipe).keys() - given.keys():
        _refuse_lacking(spec, name, getattr(pipe, name))
    return pipe


def _refuse_lacking(spec: PipelineSpec, name: str, model: nn.Module) -> None:
    """What a file lacks diffusers draws at random, and warns of that at most.

    Other names in the file are older ones that diffusers knows, but for networks, which have none.
    """
    place = checkpoint.on_disk(spec)
    held = place.read(name, spec.variant) if place and isinstance(model, ModelMixin) else None
    if held is None or held.quantized:
        return
    lacking = [weight for weight, _ in model.named_parameters() if weight not in held.shapes]
    if lacking and (spec.trains(name) or not held.shapes.keys() - model.state_dict().keys()):
        some = f"{len(lacking)} of the weights of {type(model).__name__}, `{lacking[0]}` for one"
        raise Unreadable(f"{spec.path} cannot be read as a diffusers pipeline: its part `{name}` lacks {some}")


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
    with reading(file, parts[name][1]):
        made = network.from_single_file(file, **options)
        if lacking := [weight for weight, tensor in made.named_parameters() if tensor.is_meta]:
            some = f"{len(lacking)} of its weights, `{lacking[0]}` for one"
            raise Unreadable(f"{file} cannot be read as {parts[name][1]}: it lacks {some}")
        return {name: made}


@contextmanager
def reading(path: str, what: str = "a diffusers pipeline") -> Iterator[None]:
    """What a library says of a checkpoint that it cannot read as `what` is said with its name.

    Raises:
        ValueError: naming `path` and the library's reason.
    """
    try:
        yield
    except (Unreadable, tap.Refused, torch.OutOfMemoryError, MemoryError):
        raise
    except ImportError as error:
        raise Unreadable(f"{path} cannot be read here: {tap.words(error)}") from error
    except SafetensorError as error:
        raise Unreadable(f"{path} has weights that are damaged or are none: {error}") from error
    except Exception as error:  # of whatever library reads a part, or fetches it
        if refused := None if Path(path).is_absolute() else refusal(error, path):
            raise Unreadable(str(refused)) from error
        told = str(error) if isinstance(error, OSError | ValueError | RuntimeError) else ""
        raise Unreadable(f"{path} cannot be read as {what}: {told or tap.failure(error)}") from error


class Unreadable(ValueError):
    """A checkpoint cannot be read; the message names it."""


def _refuse_by_class(path: str, found: str, expected: type[Any] | None) -> None:
    """What `model_index.json` says is enough to refuse some, before weights are read."""
    known = getattr(diffusers, found) if found in dir(diffusers) else None
    if not isinstance(known, type):
        known = None
    if expected is not None and found != expected.__name__ and not (known and issubclass(known, expected)):
        raise tap.refusal(path, found, f"it is no {expected.__name__}; the adapter `diffusers` may serve it")
    for reason in reasons_against_class(known) if known else ():
        raise tap.refusal(path, found, reason)


def reasons_against(pipe: DiffusionPipeline) -> list[str]:
    """Why the pipeline cannot be trained, as far as its parts and its arguments show; empty if they show nothing."""
    if by_call := reasons_against_class(type(pipe)):
        return by_call
    scheduler = pipe.components.get("scheduler")
    if scheduler is None:
        return ["it has no `scheduler`, so it carries nothing from noise to data"]
    name, config = type(scheduler).__name__, scheduler.config
    flow = name.startswith("FlowMatch") or (
        config.get("use_flow_sigmas", False) and config.get("prediction_type") == "flow_prediction"
    )
    reasons = {
        f"its scheduler {name} is not set up for flow matching": not flow,
        f"its scheduler {name} calls the network several times a step": scheduler.order != 1,
        "its noise levels rise": config.get("invert_sigmas", False),
        "it has no transformer to train": not tap.networks(pipe),
    }
    return [reason for reason, holds in reasons.items() if holds]


def reasons_against_class(pipeline: Any) -> list[str]:
    """Why no pipeline of this class can be trained, as far as its signatures show; empty if they show nothing."""
    arguments = _arguments(pipeline.__call__)
    parts = _arguments(pipeline.__init__)
    needed = {
        argument
        for argument, parameter in arguments.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    wanting = ", ".join(f"`{one}`" for one in sorted(needed - GIVEN))
    encoding = [_arguments(getattr(pipeline, name)).keys() for name in tap.encoding(pipeline)]
    strength = arguments.get("strength")
    reasons = {
        "sound is among what it denoises or looks at; only images and frames are trained here": any(
            word in argument for argument in arguments for word in ("audio", "waveform")
        ),
        "its network reads prompts itself, so that nothing can be encoded beforehand": not any(
            re.fullmatch(tap.ENCODER, part) for part in parts
        ),
        "what it makes of a prompt holds for one size only, and prompts are encoded here before sizes are known": any(
            "prompt" in takes and SIZES & takes for takes in encoding
        ),
        f"its call needs {wanting}, which rows of data do not have": wanting,
        "it is steered by a control image, which rows of data do not have": "control_image" in arguments
        or "controlnet" in parts,
        "it is steered by a control video, which rows of data do not have": "control_video" in arguments,
        "it is steered by the path of a camera, which rows of data do not have": "c2w" in arguments,
        "it takes an image apart into layers, of which rows and rewards have one": "layers" in arguments,
        "it makes a video piece by piece, each from noise of its own, and a sample here has one noise": PIECES
        & arguments.keys(),
        "it fills in a masked part of an image or a video, and rows of data have no masks": MASKS & arguments.keys(),
        "it starts from an image or a video under some noise, not from noise": strength and strength.default != 1,
        "it refines an image that it mixes with fresh noise in every call": not strength
        and "strength" in _arguments(getattr(pipeline, "prepare_latents", id)),
    }
    return [reason for reason, holds in reasons.items() if holds]


def _arguments(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(inspect.unwrap(function)).parameters
