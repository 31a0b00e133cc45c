"""A pipeline of its real sizes without any weights: its models have shapes and no values, and their answers too.

Configs and tokenizers are read, from a folder, the hub's cache or the hub; weights are not. The pipeline's own code
runs on real tensors: only inside of a model are they fake ones, and what comes out is filled with one number that
follows from what went in.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flowfactory.builtin import PipelineSpec
from flowfactory.models import reading, tap

ENTRIES = ("forward", "encode", "decode")
"""Methods by which pipelines call models."""


def pipeline(own: PipelineSpec) -> DiffusionPipeline:
    """The pipeline a spec names, with its models on `meta`.

    Raises:
        ValueError: its configs cannot be read, or it has parts of classes that are in no library.
    """
    where = {"revision": own.revision}
    with reading.reading(own.path):
        table: Mapping[str, Any] = DiffusionPipeline.load_config(own.path, **where)
        made = {name: value for name, value in table.items() if not name.startswith("_")}
        for name, value in made.items():
            if isinstance(value, list | tuple) and len(value) == 2 and value[0] in (None, "diffusers", "transformers"):
                library, part = value
                made[name] = None if library is None else _part(own.path, name, library, part, where)
        pipe: DiffusionPipeline = getattr(diffusers, str(table["_class_name"]))(**made)
    for module in tap.modules(pipe).values():
        module.requires_grad_(False).eval()
    return pipe


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all that models make, and how many there were at once since `most` was set to `now`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {number for number, _ in _storages((args, kwargs))}
        for number, storage in _storages(made):
            if number not in given and number not in self._known:
                self._known[number] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, number)
        self.most = max(self.most, self.now)
        return made

    def _gone(self, number: int) -> None:
        self.now -= self._known.pop(number)


def _storages(tree: Any) -> list[tuple[int, Any]]:
    found = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [(storage._cdata, storage) for storage in found]


def fill(pipe: DiffusionPipeline, dtype: torch.dtype, mode: FakeTensorMode, peak: Peak) -> None:
    """Let a pipeline of models on `meta` compute: in `dtype`, but for what is trained or has to be float32."""
    for module in tap.modules(pipe).values():
        with mode:
            _fake(module, dtype)
        for name in ENTRIES:
            if name in dir(type(module)):
                vars(module)[name] = _answering(getattr(module, name), mode, peak)


def _part(path: str, name: str, library: str, kind: str, where: Mapping[str, Any]) -> Any:
    made: Any = getattr(importlib.import_module(library), kind)
    place = {"subfolder": name, **where}
    if issubclass(made, diffusers.ModelMixin):
        config = made.load_config(path, **place)
        with torch.device("meta"):
            return made.from_config(config)
    if issubclass(made, transformers.PreTrainedModel):
        config = made.config_class.from_pretrained(path, **place)
        with torch.device("meta"):
            return made(config)
    return made.from_pretrained(path, **place)


def _fake(module: Any, dtype: torch.dtype) -> None:
    """Fake tensors on the CPU, where attention is fused and autocast applies, in the place of those on `meta`."""
    exact = [*(module._keep_in_fp32_modules or [])]
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            whole = parameter.requires_grad or not {*exact}.isdisjoint([*path.split("."), name])
            kind = torch.float32 if whole else dtype if parameter.is_floating_point() else parameter.dtype
            part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=kind), parameter.requires_grad)
        for name, value in [*part._buffers.items(), *vars(part).items()]:
            if isinstance(value, Tensor):
                part.__dict__.pop(name, None)
                setattr(part, name, torch.empty(value.shape, dtype=value.dtype))


def _answering(method: Callable[..., Any], mode: FakeTensorMode, peak: Peak) -> Callable[..., Any]:
    """A method that is asked with real tensors and answers with real ones."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        asked = [leaf for leaf in tree_leaves((args, kwargs)) if _real(leaf) and leaf.numel()]
        number = sum(float(tensor.detach().float().mean()) for tensor in asked)

        def outside(leaf: Any) -> Any:
            if isinstance(leaf, DiagonalGaussianDistribution):
                return DiagonalGaussianDistribution(outside(leaf.parameters))
            return torch.full(leaf.shape, number, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf

        with mode:
            args, kwargs = tree_map(lambda leaf: mode.from_tensor(leaf) if _real(leaf) else leaf, (args, kwargs))
            with peak:
                said = method(*args, **kwargs)
        return tree_map(outside, said)

    return answer


def _real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, FakeTensor)
