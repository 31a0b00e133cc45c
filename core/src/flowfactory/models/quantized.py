"""Fewer bits, by bitsandbytes: a frozen base in 8 or 4, and AdamW's moments in 8."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.builtin import Quantization
from flowfactory.errors import RunError

OUTLIER = 6.0
"""Activations beyond this are multiplied in full precision by LLM.int8(), as its authors and diffusers have it."""


def quantize(network: nn.Module, kind: Quantization, dtype: torch.dtype) -> None:
    """Replace the linear layers of the blocks that a network repeats, where nearly all of its weights are.

    Weights are rounded when they are moved to a device, layer by layer, so that it never holds them in full.

    Args:
        dtype: what the layers compute in.

    Raises:
        RunError: bitsandbytes is not installed.
    """
    library = _library(f'[model] quantize = "{kind}"')
    for blocks in [child for child in network.children() if isinstance(child, nn.ModuleList)]:
        for name, layer in list(blocks.named_modules()):
            if type(layer) is nn.Linear:
                above, _, own = name.rpartition(".")
                setattr(blocks.get_submodule(above), own, _layer(library, layer, kind, dtype))


def tell_peft(network: nn.Module, kind: Quantization) -> None:
    """By these names peft knows which layers LoRA is to be put around; only once they are on their device."""
    setattr(network, {"int8": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}[kind], True)
    if kind == "int8":
        for layer in network.modules():
            if isinstance(layer, _eight_bits()):
                layer.init_8bit_state()
                layer.state.CB = None


def adamw(bits: int) -> type[torch.optim.Optimizer]:
    """AdamW with moments of so many bits each.

    Raises:
        RunError: it is bitsandbytes', which is not installed.
    """
    kind: type[torch.optim.Optimizer]
    kind = torch.optim.AdamW if bits == 32 else _library("[optimizer] bits = 8").optim.AdamW8bit
    return kind


def _layer(library: Any, layer: nn.Linear, kind: Quantization, dtype: torch.dtype) -> nn.Module:
    shape = layer.in_features, layer.out_features, layer.bias is not None
    made: nn.Module
    if kind == "nf4":
        made = library.nn.Linear4bit(*shape, compute_dtype=dtype, quant_type="nf4", device="meta")
        made.weight = library.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
    else:
        made = _eight_bits()(*shape, has_fp16_weights=False, threshold=OUTLIER, device="meta")
        made.weight = library.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    return made


@functools.cache
def _eight_bits() -> Any:
    """bitsandbytes' layer, which keeps its weight apart from its parameters, computing with what is its parameter now.

    That of a divided layer is put together for each call, in memory that holds it again in the backward pass.
    """
    base: Any = importlib.import_module("bitsandbytes").nn.Linear8bitLt

    class EightBits(base):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            self.state.CB, self.weight.CB = self.weight.data, None
            made: Tensor = super().forward(x)
            return made

    return EightBits


def _library(key: str) -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise RunError(f'{key} needs bitsandbytes: pip install "flowfactory[bitsandbytes]"') from error
