"""How the pipeline that a spec names is read, and what is said where it cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from flowfactory.builtin import PipelineSpec
from flowfactory.models import tap


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
        return pipe


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
    except (Unreadable, tap.Refused):
        raise
    except ImportError as error:
        raise Unreadable(f"{path} cannot be read here: {tap.words(error)}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise Unreadable(f"{path} cannot be read as a diffusers pipeline: {error}") from error
    except SafetensorError as error:
        raise Unreadable(f"{path} has weights that are damaged or are none: {error}") from error


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
