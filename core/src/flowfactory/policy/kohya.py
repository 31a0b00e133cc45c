"""LoRA in the key layout of kohya's trainers (sd-scripts, musubi-tuner), which ComfyUI and diffusers read too.

A module `blocks.3.attn1.to_q` becomes `lora_unet_blocks_3_self_attn_q` with `.lora_down.weight` `(r, in)`,
`.lora_up.weight` `(out, r)` and `.alpha`; outputs are scaled by `alpha / r`. Where the original network computes n
projections at once, their adapters become one of n times the rank: downs stacked, ups on a diagonal amid zeros, and
alpha n times as large.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

A, B = ".lora_A.weight", ".lora_B.weight"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


@attrs.frozen
class Blocks:
    """How the modules of a network's blocks are called.

    theirs: the original name of the list of blocks. modules: for each original module, ours that it is made of, in
    order; empty where modules are called as ours. complete: every block has an adapter in each module, or in none.
    width: of the joined projections of unlike sizes that diffusers can take apart; any where it is 0.
    """

    theirs: str
    modules: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    complete: bool = False
    width: int = 0


_FLUX = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_WAN = {
    **{f"self_attn_{n}": (f"attn1.{m}",) for n, m in zip("qkvo", ("to_q", "to_k", "to_v", "to_out.0"), strict=True)},
    **{f"cross_attn_{n}": (f"attn2.{m}",) for n, m in zip("qkvo", ("to_q", "to_k", "to_v", "to_out.0"), strict=True)},
    "cross_attn_k_img": ("attn2.add_k_proj",),
    "cross_attn_v_img": ("attn2.add_v_proj",),
    "ffn_0": ("ffn.net.0.proj",),
    "ffn_2": ("ffn.net.2",),
}
_SD3 = {
    "x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block_attn_proj": ("attn.to_out.0",),
    "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block_attn2_proj": ("attn2.to_out.0",),
    "x_block_mlp_fc1": ("ff.net.0.proj",),
    "x_block_mlp_fc2": ("ff.net.2",),
    "x_block_adaLN_modulation_1": ("norm1.linear",),
    "context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block_attn_proj": ("attn.to_add_out",),
    "context_block_mlp_fc1": ("ff_context.net.0.proj",),
    "context_block_mlp_fc2": ("ff_context.net.2",),
}
LAYOUTS: Mapping[str, Mapping[str, Blocks]] = {
    "FluxTransformer2DModel": {
        "transformer_blocks": Blocks("double_blocks", _FLUX),
        "single_transformer_blocks": Blocks("single_blocks", _FLUX_SINGLE, width=3072),
    },
    "SD3Transformer2DModel": {"transformer_blocks": Blocks("joint_blocks", _SD3)},
    "QwenImageTransformer2DModel": {"transformer_blocks": Blocks("transformer_blocks")},
    "WanTransformer3DModel": {"blocks": Blocks("blocks", _WAN, complete=True)},
}
"""By network class, and in it by our name of the list of blocks."""
FOREIGN = ("SD3Transformer2DModel",)
"""Those whose LoRA diffusers does not read in kohya's layout, though ComfyUI and kohya's own programs do."""


def to_kohya(network: nn.Module, state: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """A network's LoRA, `<module>.lora_A.weight` and `.lora_B.weight`, in kohya's layout.

    Args:
        scale: alpha / r, of every module.

    Raises:
        ValueError: there is no such layout for the network, or for a module in it.
    """
    adapted = {key.removesuffix(A) for key in state if key.endswith(A)}
    made: dict[str, Tensor] = {}
    for name, members in _adapters(network, adapted).items():
        made |= _fused(name, members, network, state, scale)
        adapted -= set(members)
    if adapted:
        names = ", ".join(sorted(adapted))
        raise ValueError(f"kohya's layout has no name for {names}; write the form lora, which ComfyUI loads as well")
    return made


def from_kohya(network: nn.Module, adapted: set[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA of the modules `adapted` as `to_kohya` was given it, with `alpha / r` in its first factor."""
    state: dict[str, Tensor] = {}
    for name, members in _adapters(network, adapted).items():
        down, up = tensors[name + DOWN], tensors[name + UP]
        rows = torch.split(up, [_widths(network.get_submodule(member))[1] for member in members])
        scale = float(tensors[name + ALPHA]) / len(down)
        ranks = zip(down.chunk(len(members)), range(len(members)), strict=True)
        for member, (own, place) in zip(members, ranks, strict=True):
            state[member + A] = own * scale
            state[member + B] = rows[place][:, place * len(own) : (place + 1) * len(own)].contiguous()
    return state


def of_others(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA of a file in this layout, whoever wrote it, with `alpha / r` in its first factors.

    Raises:
        ValueError: there is no such layout for the network, or a name of the file is not in it.
    """
    layers = {path for path, module in network.named_modules() if isinstance(module, nn.Linear)}
    state: dict[str, Tensor] = {}
    left = set(tensors)
    for name, members in _adapters(network, layers).items():
        if not {name + DOWN, name + UP} <= left:
            continue
        down, up = tensors[name + DOWN], tensors[name + UP]
        scale = float(tensors[name + ALPHA]) / len(down) if name + ALPHA in left else 1.0
        rows = torch.split(up, [_widths(network.get_submodule(member))[1] for member in members])
        for place, (member, block) in enumerate(zip(members, rows, strict=True)):
            a, b = _own(down, block, place, len(members))
            if a.any() or b.any():
                state |= {member + A: a * scale, member + B: b.contiguous()}
        left -= {name + DOWN, name + UP, name + ALPHA}
    if left:
        raise ValueError(f"its layout has no `{min(left)}`")
    return state


def _own(down: Tensor, block: Tensor, place: int, members: int) -> tuple[Tensor, Tensor]:
    """One member's share of an adapter: of ranks that are its own, or of all where they are shared."""
    rank = len(down) // members
    inside = slice(place * rank, (place + 1) * rank)
    others = block.clone()
    others[:, inside] = 0
    apart = rank * members == len(down) and not others.any()
    return (down[inside], block[:, inside]) if apart else (down, block)


def unread(network: nn.Module, adapted: set[str]) -> str:
    """Why diffusers does not read this LoRA in kohya's layout, though others do; empty where it does."""
    name = type(network).__name__
    if name in FOREIGN:
        return f"diffusers reads no LoRA of {name} in this layout"
    for ours, blocks in LAYOUTS[name].items():
        inside = [module for module in adapted if module.startswith(f"{ours}.")]
        joined = {m for members in _adapters(network, set(inside)).values() if len(members) > 1 for m in members}
        widths = {_widths(network.get_submodule(module))[0] for module in joined}
        if blocks.width and widths - {blocks.width}:
            width = widths.pop()
            return (
                f"diffusers reads this layout of {name} at its published width of {blocks.width} only, not of {width}"
            )
    return ""


def _adapters(network: nn.Module, adapted: set[str]) -> dict[str, tuple[str, ...]]:
    """Every adapter there is to be in kohya's layout, and our names of the modules it is for.

    Raises:
        ValueError: there is no such layout for the network.
    """
    layout = LAYOUTS.get(type(network).__name__)
    if layout is None:
        known = ", ".join(sorted(LAYOUTS))
        raise ValueError(f"there is no kohya layout for {type(network).__name__}; there is for {known}")
    found: dict[str, tuple[str, ...]] = {}
    for ours, blocks in layout.items():
        numbers = {int(match[1]) for name in adapted if (match := re.match(rf"{ours}\.(\d+)\.", name))}
        for number in sorted(numbers):
            modules = _modules(blocks, network, f"{ours}.{number}", adapted)
            found |= {f"lora_unet_{blocks.theirs}_{number}_{theirs}": members for theirs, members in modules.items()}
    return found


def _modules(blocks: Blocks, network: nn.Module, block: str, adapted: set[str]) -> dict[str, tuple[str, ...]]:
    """Original modules of a block that get an adapter, and our names of what they are made of."""
    if not blocks.modules:
        inside = [name.removeprefix(f"{block}.") for name in adapted if name.startswith(f"{block}.")]
        return {name.replace(".", "_"): (f"{block}.{name}",) for name in sorted(inside)}
    existing = {name for name, _ in network.get_submodule(block).named_modules()}
    named = {
        theirs: tuple(f"{block}.{member}" for member in members)
        for theirs, members in blocks.modules.items()
        if existing.issuperset(members)
    }
    return {t: members for t, members in named.items() if blocks.complete or not adapted.isdisjoint(members)}


def _fused(
    name: str, members: Sequence[str], network: nn.Module, state: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """One adapter for several modules, each with the largest of their ranks; what one lacks is zeros."""
    like = next(tensor for key, tensor in state.items() if key.endswith(A))
    rank = max((len(state[member + A]) for member in members if member + A in state), default=len(like))
    downs, ups = [], []
    for member in members:
        inside, outside = _widths(network.get_submodule(member))
        down = state.get(member + A, like.new_zeros(rank, inside))
        up = state.get(member + B, like.new_zeros(outside, rank))
        missing = rank - len(down)
        downs.append(functional.pad(down, (0, 0, 0, missing)))
        ups.append(functional.pad(up, (0, missing)))
    return {
        name + DOWN: torch.cat(downs).contiguous(),
        name + UP: torch.block_diag(*ups).contiguous(),  # type: ignore[no-untyped-call]
        name + ALPHA: torch.tensor(float(scale * rank * len(members))),
    }


def _widths(module: nn.Module) -> tuple[int, int]:
    """Of a linear layer, or of peft's around one."""
    assert isinstance(module.in_features, int)
    assert isinstance(module.out_features, int)
    return module.in_features, module.out_features
