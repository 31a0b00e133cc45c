"""Sizes of a transformer at work, from the configs of a checkpoint, as diffusers names them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Size
from flowfactory.contracts.specs import AdapterSpec
from flowfactory.plan.checkpoint import Part

TEXT = 512
"""Text tokens of a prompt, where the spec does not say."""

LARGE = 1 << 62
"""Past it a size in a config is none."""

LAYERS = (
    *("num_layers", "num_single_layers", "n_layers", "num_mmdit_layers", "num_single_dit_layers", "depth"),
    *("num_refiner_layers", "n_refiner_layers", "num_visual_blocks", "num_text_blocks", "num_decoder_layers"),
)
WIDTHS = ("hidden_size", "dim", "model_dim")
CAPTIONS = (
    *("joint_attention_dim", "text_dim", "caption_channels", "cap_feat_dim", "text_embed_dim", "text_hidden_dim"),
    *("context_in_dim", "in_text_dim", "cross_attention_dim"),
)
BESIDE = ("cross_attention_dim", "text_dim", "in_text_dim", "crossattn_proj_in_channels")
"""Names in the configs of diffusers' networks: how many layers there are, how wide they are, how wide text is when it
comes, and those of networks in which text does not pass through the layers but is looked at from them."""


@attrs.frozen
class Geometry:
    """Sizes of a transformer at work.

    tokens: of one sample; `text` of them where it passes through the same layers. elements: of one latent.
    caption: numbers a prompt is encoded to.
    """

    layers: int
    width: int
    tokens: int
    text: int
    elements: int
    caption: int
    embeds_guidance: bool


def geometry(own: AdapterSpec, size: Size, parts: Mapping[str, Part]) -> Geometry:
    """Sizes of an adapter's network that makes samples of a size, as diffusers' configs name them.

    Raises:
        KeyError: a config has no such name.
        ValueError: it has something else by it.
    """
    try:
        made = _read(own, size, parts)
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"sizes that are numbers: {error}") from error
    if odd := [
        name for name, value in attrs.asdict(made).items() if not (type(value) in (int, bool) and value < LARGE)
    ]:
        raise ValueError(f"sizes that are whole numbers: {', '.join(odd)}")
    return made


NORMED, CAUSAL = 3, 9
"""Values that a decoder has at once for each pixel and each channel of its widest level. Of images: what goes into a
block, that normed, and activated. Of videos, as counted: for each frame of a chunk, and each that convolutions keep."""


def decoded(vae: Mapping[str, Any], size: Size) -> int:
    """Numbers that a VAE has at once as it decodes one sample.

    Images are decoded whole. Wan's videos come in chunks of as many frames as a latent one stands for, and convolutions
    remember the last two.

    Raises:
        KeyError: its config has no such name.
        ValueError: it has something else by it, or is of another kind.
    """
    pixels, kind = size.height * size.width, vae.get("_class_name")
    try:
        if kind in ("AutoencoderKL", "AutoencoderKLFlux2"):
            widths = vae["block_out_channels"]
            most: int = max(wide * pixels // 4**level for level, wide in enumerate([*widths[1:], widths[-1]]))
            return NORMED * most
        if kind in ("AutoencoderKLWan", "AutoencoderKLQwenImage") and not vae.get("is_residual"):
            width = int((vae.get("decoder_base_dim") or vae["base_dim"]) * vae["dim_mult"][0])
            chunk = min(int(_scales(vae)[1]), size.frames)
            return pixels * (CAUSAL * width * (chunk + min(2, chunk)) + 3 * size.frames)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"sizes that are numbers: {error}") from error
    raise ValueError(f"what {kind or 'the VAE'} computes with")


def multiples(own: AdapterSpec, parts: Mapping[str, Part]) -> tuple[int, int]:
    """What pixels of a side, and frames after the first, are multiples of; 1 where the configs do not tell.

    A VAE's levels each halve a picture; a network makes one token of a patch of latent pixels.
    """
    try:
        found = _multiples(own, parts)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # odd configs tell nothing
        return 1, 1
    step, slower = (number if type(number) is int and number > 0 else 1 for number in found)
    return step, slower


def _multiples(own: AdapterSpec, parts: Mapping[str, Part]) -> tuple[Any, Any]:
    vae = next((part.config for name, part in parts.items() if name == "vae"), None)
    network = next((part.config for name, part in parts.items() if own.trains(name)), None)
    if vae is None or network is None:
        return 1, 1
    halvings = vae.get("temperal_downsample") or (vae.get("block_out_channels") or [0])[1:]
    patch = network.get("patch_size")
    side = patch[-1] if isinstance(patch, list) and patch else patch
    scale = vae.get("scale_factor_spatial") or 2 ** len(halvings)
    slower = vae.get("scale_factor_temporal") or 2 ** sum(map(bool, vae.get("temperal_downsample") or ()))
    return scale * max(own.patch, side if isinstance(side, int) else 1), slower


def _read(own: AdapterSpec, size: Size, parts: Mapping[str, Part]) -> Geometry:
    network = next(part.config for name, part in parts.items() if own.trains(name))
    vae = parts["vae"].config
    scale, slower = _scales(vae)
    channels = _first(vae, "latent_channels", "z_dim")
    time, side = _patch(network)
    if network.get("in_channels") == 4 * channels and side == 1:
        side = 2  # the pipeline makes a token of four latent pixels before the network sees them
    frames = (size.frames - 1) // slower + 1
    pixels = frames * (size.height // scale) * (size.width // scale)
    text = (own.max_sequence_length if isinstance(own, PipelineSpec) else None) or TEXT
    within = 0 if any(network.get(name) for name in BESIDE) else text
    heads, deep = network.get("num_attention_heads"), network.get("attention_head_dim")
    return Geometry(
        layers=sum(network.get(name) or 0 for name in LAYERS),
        width=heads * deep if heads and deep else _first(network, *WIDTHS),
        tokens=pixels // (time * side * side) + within,
        text=within,
        elements=channels * pixels,
        caption=text * _caption(network),
        embeds_guidance=bool(network.get("guidance_embeds")),
    )


def _first(config: Mapping[str, Any], *names: str) -> Any:
    """What the first of several names stands for.

    Raises:
        KeyError: there is none of them.
    """
    return next((config[name] for name in names if config.get(name) is not None), None) or config[names[0]]


def _caption(network: Mapping[str, Any]) -> int:
    """Numbers that one token of a prompt is encoded to; of some models, by several layers or encoders."""
    width = _first(network, *CAPTIONS)
    total: int = sum(width) if isinstance(width, list) else width
    return total * (network.get("num_text_layers") or 1)


def _patch(network: Mapping[str, Any]) -> tuple[int, int]:
    """Of what a token is made: frames, and rows or columns, of latents."""
    patch = network.get("patch_size") or network.get("all_patch_size") or 1
    slow = network.get("patch_size_t") or network.get("all_f_patch_size") or 1
    time, *_, side = (slow, patch) if isinstance(patch, int) else (slow, *patch) if len(patch) == 1 else patch
    return (time[0] if isinstance(time, list | tuple) else time), side


def _scales(vae: Mapping[str, Any]) -> tuple[int, int]:
    """How many pixels, and how many frames, a latent one stands for."""
    halved = len(vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0]) - 1
    slowed = 0
    if (doubled := vae.get("temperal_downsample")) is not None:
        halved, slowed = len(doubled), sum(doubled)
    elif (scaled := vae.get("spatio_temporal_scaling")) is not None:
        halved = slowed = sum(scaled)
        kinds = vae.get("downsample_type") or ()
        if "spatiotemporal" in kinds:
            halved, slowed = (sum(word in kind for kind in kinds) for word in ("spati", "temporal"))
    patch = vae.get("patch_size") if vae.get("spatio_temporal_scaling") else None
    space = vae.get("scale_factor_spatial") or vae.get("spatial_compression_ratio") or 2**halved * (patch or 1)
    time = vae.get("scale_factor_temporal") or vae.get("temporal_compression_ratio") or 2**slowed
    return space, math.prod(vae.get("temporal_expansions") or [time])
