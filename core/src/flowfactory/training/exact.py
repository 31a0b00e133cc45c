"""What one sample takes, measured: a pass through networks of the real sizes that have no weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from diffusers import ModelMixin
from peft import inject_adapter_in_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves

from flowfactory.builtin import PipelineSpec
from flowfactory.components.resolved import Target
from flowfactory.contracts.key import Size
from flowfactory.data.rows import load
from flowfactory.errors import RunError
from flowfactory.models import tap
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.plan.checkpoint import Part
from flowfactory.plan.working import Measured
from flowfactory.policy.weights import lora_config
from flowfactory.processes.distributed import DTYPES
from flowfactory.spec.tables import Full, Spec
from flowfactory.training import hollow

LEVEL = 0.5
"""A noise level like any other."""

UNTRUE = "its answers without values look like those of a model that cannot be trained; a run looks at real ones"


@attrs.define(eq=False)
class Kept:
    """Storages that autograd keeps, by their number; those of weights and of their casts are left out.

    inside: of each repeated layer. outside: of all else. entering: what layers are handed.
    """

    weights: set[int]
    shapes: set[tuple[int, ...]]
    inside: dict[str, dict[int, Tensor]] = attrs.field(factory=dict)
    outside: dict[int, Tensor] = attrs.field(factory=dict)
    entering: dict[int, Tensor] = attrs.field(factory=dict)
    layer: str | None = None

    def keep(self, tensor: Tensor) -> Tensor:
        """One that autograd saves."""
        number = tensor.untyped_storage()._cdata
        if number not in self.weights and tuple(tensor.shape) not in self.shapes:
            here = self.outside if self.layer is None else self.inside.setdefault(self.layer, {})
            here.setdefault(number, tensor)
        return tensor

    def enter(self, name: str, handed: Any) -> None:
        """A layer begins."""
        self.layer = name
        tensors = [leaf for leaf in tree_leaves(handed) if isinstance(leaf, Tensor)]
        self.entering |= {tensor.untyped_storage()._cdata: tensor for tensor in tensors}

    def leave(self) -> None:
        """A layer ends."""
        self.layer = None

    def sizes(self) -> tuple[int, int, int]:
        """Bytes of the largest layer, of all, and of all with gradient checkpointing."""
        layers = [_bytes(tensors) for tensors in self.inside.values()]
        whole = {number: t for tensors in (self.outside, *self.inside.values()) for number, t in tensors.items()}
        largest = max(layers, default=_bytes(self.outside))
        return largest, _bytes(whole), _bytes(self.outside | self.entering) + max(layers, default=0)


def model(spec: Spec, adapter: Target) -> PipelineAdapter[Any]:
    """The model a spec names as its configs have it, without weights.

    Raises:
        RunError: it is no pipeline, or its configs cannot be read.
    """
    own = spec.model.spec
    if not isinstance(own, PipelineSpec):
        raise RunError(
            f"adapter `{spec.model.name}` drives no pipeline of diffusers, so nothing is known of its networks"
        )
    made = adapter(attrs.evolve(own, quantize=None))
    if not isinstance(made, PipelineAdapter):
        raise RunError(f"adapter `{spec.model.name}` drives no pipeline of diffusers, so its networks are not known")
    with _in_words(own.path):
        made.adopt(hollow.pipeline(own), torch.device("cpu"), DTYPES[spec.run.precision])
    return made


def parts(model: PipelineAdapter[Any]) -> dict[str, Part]:
    """Its models as a checkpoint has them, but for those in fewer bits, of which configs say too little.

    To be asked for before it is measured.
    """
    made: dict[str, Part] = {}
    models: Mapping[str, Any] = tap.modules(model.pipe)
    for name, module in models.items():
        said = module.to_json_string() if isinstance(module, ModelMixin) else module.config.to_json_string()
        kept = {*module.state_dict(), *(n for n, _ in module.named_parameters())}
        tensors = [*module.named_parameters(), *module.named_buffers()]  # each once, however many names it has
        shapes = {n: tuple(t.shape) for n, t in tensors if n in kept and t.is_floating_point()}
        part = Part(shapes, json.loads(said))
        made |= {} if part.quantized else {name: part}
    return made


def measure(spec: Spec, model: PipelineAdapter[Any]) -> Measured:
    """What the longest prompt of a spec takes, at its size, guidance, precision and tuning.

    Raises:
        RunError: the model cannot compute without values.
    """
    with _in_words(spec.model.spec.path):
        _train(spec, model)
        peak = hollow.Peak()
        hollow.fill(model.pipe, DTYPES[spec.run.precision], FakeTensorMode(allow_non_fake_inputs=True), peak)
        try:
            return _measured(spec, model, peak)
        except tap.Refused as error:
            if error.__cause__ is None:
                raise RunError(UNTRUE) from error
            raise


@contextmanager
def _in_words(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RunError(f"{path} cannot be measured: {_why(error)}") from error


def _why(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, tap.Refused) and error.__cause__ else error
    if isinstance(cause, DataDependentOutputException | DynamicOutputShapeException):
        return "its networks look at values to decide what to compute, and here there are none"
    return str(cause) if isinstance(cause, RunError) or not isinstance(cause, Exception) else tap.words(cause)


def _train(spec: Spec, adapter: PipelineAdapter[Any]) -> None:
    """Make of networks on `meta` what a run makes of them."""
    for network in adapter.networks().values():
        if isinstance(spec.tuning, Full):
            network.requires_grad_(True)
        else:
            targets = spec.tuning.targets or adapter.lora_targets()
            with torch.device("meta"):
                inject_adapter_in_model(lora_config(spec.tuning, targets), network)


def _measured(spec: Spec, adapter: PipelineAdapter[Any], peak: hollow.Peak) -> Measured:
    size, dtype = spec.sampling.size, DTYPES[spec.run.precision]
    rows = [row for source in spec.data.sources for row in load(source.prompts)]
    conditions = adapter.encode([max(rows, key=lambda row: len(row.prompt))])
    encoding = peak.most
    x = torch.zeros(1, *adapter.latent_shape(size), dtype=dtype)
    kept = _nothing_kept(adapter.networks(), casts=dtype != torch.float32)
    with _watched(adapter.networks(), kept), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        adapter.velocity(x, torch.tensor([LEVEL]), conditions, spec.sampling.guidance, size)
    each, sizes = sum(tensor.nbytes for tensor in conditions.values()), kept.sizes()
    return Measured(x.numel(), each, *sizes, encoding, _decoding(adapter, x, size, peak))


@torch.no_grad()
def _decoding(adapter: PipelineAdapter[Any], x: Tensor, size: Size, peak: hollow.Peak) -> int | None:
    """What there is at once as a latent is decoded; `None` where that needs values."""
    before = peak.most = peak.now
    try:
        adapter.decode(x, size)
    except Exception:  # as in `_in_words`, but without it there is still much to say
        return None
    return peak.most - before


def _nothing_kept(networks: Mapping[str, nn.Module], casts: bool) -> Kept:
    weights = [tensor for network in networks.values() for tensor in (*network.parameters(), *network.buffers())]
    shapes = {shape for tensor in weights for shape in (tuple(tensor.shape), tuple(tensor.shape)[::-1]) if casts}
    return Kept({tensor.untyped_storage()._cdata for tensor in weights}, shapes)


@contextmanager
def _watched(networks: Mapping[str, nn.Module], kept: Kept) -> Iterator[None]:
    """Note what autograd keeps, by the layers that a network repeats."""
    hooks = []
    for name, network in networks.items():
        for path, block in network.named_modules():
            above, _, number = path.rpartition(".")
            if above and "." not in above and number.isdigit():
                enter = _entering(kept, f"{name}.{path}")
                hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.append(block.register_forward_hook(lambda *_: kept.leave()))
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _entering(kept: Kept, name: str) -> Any:
    return lambda module, args, kwargs: kept.enter(name, (args, kwargs))


def _bytes(tensors: Mapping[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
