"""LoRA added to the weights it adapts while no gradient is needed, so that no pass computes it; exactly undone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from flowfactory.policy.loaded import LORA_NAME, exchange, switched
from flowfactory.processes import sharding


@contextmanager
def merged(layers: Sequence[BaseTunerLayer]) -> Iterator[None]:
    """Compute with the weights of layers and their active LoRA in one tensor, rounded as those weights are.

    The weights themselves wait beside it, and come back however this ends. Divided ones are asked for by every process.
    """
    with ExitStack() as undone:
        for layer in layers:
            for adapter in layer.active_adapters if not layer.disable_adapters else ():
                if isinstance(layer, LoraLayer) and adapter in layer.scaling:
                    weight = layer.get_base_layer().weight
                    undone.callback(exchange, weight, exchange(weight, _sum(layer, adapter, weight.detach())))
        undone.enter_context(switched(layers, None))
        yield


def check(networks: Mapping[str, nn.Module]) -> None:
    """Make sure that LoRA can be added to what it adapts.

    Raises:
        ValueError: it cannot; the message names the layer.
    """
    for name, network in networks.items():
        for path, layer in network.named_modules():
            if isinstance(layer, LoraLayer) and LORA_NAME in layer.scaling:
                base = layer.get_base_layer()
                kind = f"`{path}` of `{name}`, a {type(base).__name__}"
                if not base.weight.is_floating_point():
                    raise ValueError(f"[sampling] merged: {kind}, has weights in fewer bits; set it to false")
                if isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d) and base.groups > 1:
                    raise ValueError(f"[sampling] merged: {kind}, has groups; set it to false, or adapt other layers")


@torch.no_grad()
def _sum(layer: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
    """A layer's weight and its LoRA, added up in float32."""
    if adapter in layer.lora_embedding_A:
        a, b = (sharding.whole(each[adapter].detach()) for each in (layer.lora_embedding_A, layer.lora_embedding_B))
        added = (b.float() @ a.float()).T
    else:
        a, b = (sharding.whole(each[adapter].weight.detach()) for each in (layer.lora_A, layer.lora_B))
        added = (b.float().flatten(1) @ a.float().flatten(1)).reshape(weight.shape)
    return (weight.float() + sharding.like(added * layer.scaling[adapter], weight)).to(weight.dtype)
