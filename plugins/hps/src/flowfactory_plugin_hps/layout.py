"""CLIP in open_clip's layout, and in that of transformers.

open_clip keeps query, key and value in one matrix, projects by `x @ proj` and not by `proj @ x`, and has other names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TURNED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_TOWERS = {"transformer.resblocks.": "text_model", "visual.transformer.resblocks.": "vision_model"}
_PARTS = ("q_proj", "k_proj", "v_proj")
UNUSED = ("attn_mask",)
"""What some checkpoints have beside weights."""


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of open_clip's `CLIP`, by the names of transformers' `CLIPModel`.

    Raises:
        ValueError: it has what such a network does not.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        made |= dict(_named(name.removeprefix("module."), tensor))
    return made


def _named(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name in UNUSED:
        return
    if (simple := (_TEXT | _VISION).get(name)) is not None:
        yield simple, tensor
    elif name in _TURNED:
        yield _TURNED[name], tensor.T
    else:
        prefix = next((prefix for prefix in _TOWERS if name.startswith(prefix)), None)
        number, _, rest = name.removeprefix(prefix or "").partition(".")
        part, _, end = rest.rpartition(".")
        layer = f"{_TOWERS.get(prefix or '')}.encoder.layers.{number}"
        if prefix is not None and part in _BLOCK:
            yield f"{layer}.{_BLOCK[part]}.{end}", tensor
        elif prefix is not None and rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
            for own, third in zip(_PARTS, tensor.chunk(3), strict=True):
                yield f"{layer}.self_attn.{own}.{rest.rpartition('_')[2]}", third
        else:
            raise ValueError(f"it has `{name}`, which no CLIP of open_clip has")


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back; what open_clip does not keep is left out."""
    made = {theirs: tensors[ours] for theirs, ours in (_TEXT | _VISION).items()}
    made |= {theirs: tensors[ours].T.contiguous() for theirs, ours in _TURNED.items()}
    for prefix, tower in _TOWERS.items():
        start = f"{tower}.encoder.layers."
        for number in sorted(
            {name.removeprefix(start).partition(".")[0] for name in tensors if name.startswith(start)}
        ):
            own, layer = f"{prefix}{number}", f"{start}{number}"
            for end in ("weight", "bias"):
                made |= {f"{own}.{a}.{end}": tensors[f"{layer}.{b}.{end}"] for a, b in _BLOCK.items()}
                made[f"{own}.attn.in_proj_{end}"] = torch.cat([tensors[f"{layer}.self_attn.{p}.{end}"] for p in _PARTS])
    return made
