"""How the pipeline that a spec names is read, and what is said where it cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from safetensors import SafetensorError
from torch import nn

from flowfactory.builtin import PipelineSpec
from flowfactory.models import tap
from flowfactory.plan import checkpoint


def read(
    spec: PipelineSpec, dtype: torch.dtype, encoders: bool = True, expected: type[Any] | None = None
) -> DiffusionPipeline:
    """The pipeline a spec names, every weight in `dtype`; with or without text and image encoders.

    Args:
        expected: what it has to be, if not anything; looked at before weights are read.

    Raises:
        ValueError: there is no pipeline there, or it cannot be read, or it is another one.
    """
    path, where = spec.path, {"revision": spec.revision}
    with reading(path):
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
    for reason in tap.reasons_against_class(known) if known else ():
        raise tap.refusal(path, found, reason)
