"""Weights from elsewhere, read for the networks of a model: LoRA in whatever layout, or whole networks.

diffusers knows the layouts: a pipeline's class turns kohya's names and others' into those of its own modules.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LoraBaseMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor, nn

from flowfactory.data.refusals import refusal
from flowfactory.errors import did_you_mean, listed, shown
from flowfactory.policy import kohya
from flowfactory.spec import holdings

A, B, PEFT = ".lora_A.weight", ".lora_B.weight", "base_model.model."
ALPHA, ALPHAS = ".alpha", "lora_alpha"
"""The end of a name in some files; and where in a checkpoint's metadata the alphas of all modules are."""
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
UNUSABLE = ("dora_scale", "lora_magnitude_vector", "lokr_", "hada_", "lora_B.bias", "lora_embedding_")
"""In names of tensors: what is no plain LoRA."""


@attrs.frozen(eq=False)
class LowRank:
    """The LoRA of one network, by module.

    alphas: outputs are scaled by alpha / r. factors: `(r, in, …)` and `(out, r, …)`.
    """

    alphas: Mapping[str, float]
    factors: Mapping[str, tuple[Tensor, Tensor]]

    def rank(self, module: str) -> int:
        """The rank of one module."""
        return len(self.factors[module][0])


@attrs.frozen(eq=False)
class Given:
    """Weights that were read for some networks: LoRA by network, or whole weights by `network.parameter`."""

    title: str
    lora: Mapping[str, LowRank] = attrs.field(factory=dict)
    whole: Mapping[str, Tensor] = attrs.field(factory=dict)


def read(location: str, networks: Mapping[str, nn.Module], pipe: DiffusionPipeline | None) -> Given:
    """What a location holds for these networks. What is not on this disk is downloaded.

    Args:
        pipe: their pipeline, whose class knows layouts; without, only names as peft and runs write them are understood.

    Raises:
        ValueError: it cannot be read, or is not for these networks; the message names what does not fit.
    """
    found = holdings.find(location) or holdings.find(_download(location))
    assert found is not None
    title = shown(Path(location)) if Path(location).is_absolute() else location
    if found.kind != "lora":
        return Given(title, whole=_whole(title, found, networks))
    model, read = _model(networks, pipe), dict[str, LowRank]()
    for name, (file,) in found.files.items():
        read |= _low_rank(file, model, name or model.main)
    if missing := sorted(networks.keys() - read.keys()):
        raise ValueError(f"{title} has no LoRA for {listed(missing)}")
    return Given(title, lora={name: read[name] for name in networks})


def of_checkpoint(file: Path, networks: Mapping[str, nn.Module]) -> Given:
    """The LoRA in a checkpoint of a run."""
    model = _model(networks, None)
    return Given(shown(file), lora=_low_rank(file, model, model.main))


def _download(hub_id: str) -> str:
    from huggingface_hub import snapshot_download

    weights, others = ["*.json", "*.safetensors"], ["vae*/*", "text_encoder*/*", "image_encoder*/*"]
    try:
        return snapshot_download(hub_id, allow_patterns=weights, ignore_patterns=others)
    except Exception as error:  # of whatever library the connection is made with
        refused = refusal(error, hub_id)
        raise ValueError(refused or f"{hub_id} is neither on this disk nor to be had from the hub: {error}") from error


# --- LoRA ----------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class _Model:
    """What names are told by.

    modules: by network and path. main: the network that names without one are for. pipe: see `read`.
    """

    modules: Mapping[str, Mapping[str, nn.Module]]
    main: str
    pipe: Any

    def has(self, key: str) -> bool:
        """Whether `network.module` is one."""
        network, _, module = key.partition(".")
        return module in self.modules.get(network, ())


def _model(networks: Mapping[str, nn.Module], pipe: DiffusionPipeline | None) -> _Model:
    modules = {name: dict(network.named_modules()) for name, network in networks.items()}
    own: Any = pipe if takes_lora(pipe) else None
    return _Model(modules, next(iter(networks)) if own is None else own.transformer_name, own)


def takes_lora(pipe: DiffusionPipeline | None) -> bool:
    """Whether a pipeline's class loads LoRA for its transformer; there are some that do for a `unet` they have not."""
    return isinstance(pipe, LoraBaseMixin) and "transformer" in pipe._lora_loadable_modules


def _low_rank(file: Path, model: _Model, network: str) -> dict[str, LowRank]:
    """The LoRA of a file by network; what it has for the main network is for `network`."""
    tensors, alphas = _named(file, model)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        pairs.setdefault(key[: -len(A)], {})[key[-len(A) :]] = tensor
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for layer, pair in pairs.items():
        shapes = " and ".join(f"{key.removesuffix('.weight')[1:]} {tuple(t.shape)}" for key, t in pair.items())
        if pair.keys() != {A, B} or pair[A].dim() < 2 or len(pair[A]) != pair[B].shape[1]:
            raise ValueError(f"{shown(file)} has no two factors of one rank for `{layer}`, but {shapes}")
        if not (pair[A].any() or pair[B].any()):
            continue  # as Wan's layout fills up its blocks: it does nothing, and never would
        written, _, module = layer.partition(".")
        name = network if written == model.main else written
        _refuse_unless_layer(file, model, name, module)
        inside, outside = _widths(model.modules[name][module], len(pair[A]))
        if (tuple(pair[A].shape), tuple(pair[B].shape)) != (inside, outside):
            what = f"{shown(file)} is of another network: it has {shapes} for `{layer}`"
            raise ValueError(f"{what}, where lora_A {inside} and lora_B {outside} would fit")
        found.setdefault(name, {})[module] = pair[A], pair[B]
    made = {}
    for name, factors in found.items():
        written = model.main if name == network else name
        own = {module: alphas.get(f"{written}.{module}", float(len(a))) for module, (a, _) in factors.items()}
        made[name] = LowRank(own, factors)
    return made


def _named(file: Path, model: _Model) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The factors of a file as `network.module.lora_A.weight` and `….lora_B.weight`, and alphas by `network.module`."""
    tensors, (_, metadata) = load_file(file), holdings.header(file)
    if odd := next((key for key in tensors if any(word in key for word in UNUSABLE)), None):
        raise ValueError(f"{shown(file)} is no plain LoRA: it has `{odd}`, which is not supported here")
    peft = all(key.startswith(PEFT) for key in tensors)
    tensors = {key.removeprefix(PEFT if peft else ""): tensor for key, tensor in tensors.items()}
    tensors = {key.replace(".default.weight", ".weight"): tensor for key, tensor in tensors.items()}
    alphas: dict[str, float] = {}
    prefixed = {_prefixed(key, model): tensor for key, tensor in tensors.items()}
    if model.pipe is None or all(key.endswith((A, B, ALPHA)) and model.has(_layer(key)) for key in prefixed):
        tensors = prefixed
    else:
        tensors, alphas = _by_diffusers(file, tensors, model)
    alphas |= {_layer(key): float(tensor) for key, tensor in tensors.items() if key.endswith(ALPHA)}
    factors = {key: tensor for key, tensor in tensors.items() if not key.endswith(ALPHA)}
    if odd := next((key for key in factors if not key.endswith((A, B))), None):
        raise ValueError(f"{shown(file)} has `{odd}`, which is no factor of a LoRA in a layout that is known here")
    return factors, _said(file, metadata, {_layer(key) for key in factors}, model.main) | alphas


def _layer(key: str) -> str:
    for end in (A, B, ALPHA):
        key = key.removesuffix(end)
    return key


def _prefixed(key: str, model: _Model) -> str:
    """A name with its network's before it."""
    layer = _layer(key)
    return f"{model.main}.{key}" if layer in model.modules[model.main] and not model.has(layer) else key


def _by_diffusers(
    file: Path, tensors: Mapping[str, Tensor], model: _Model
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A state dict in a layout of others, in diffusers' own; and alphas that are not among the tensors."""
    read: Any = type(model.pipe).lora_state_dict
    asked = {"return_alphas": True} if "return_alphas" in inspect.signature(inspect.unwrap(read)).parameters else {}
    try:
        made = read(dict(tensors), **asked)
        state, alphas = made if asked else (made, None)
        if not any(".lora_A." in key for key in state):
            state = convert_unet_state_dict_to_peft(state)
    except Exception as error:  # the converters raise whatever their assumptions come to
        why = f"{type(error).__name__}: {error}"
        return _by_kohya(file, tensors, model, f"diffusers cannot read it for {type(model.pipe).__name__}: {why}"), {}
    if any(key.startswith("lora_unet_") for key in state):
        return _by_kohya(file, tensors, model, f"diffusers does not read it for {type(model.pipe).__name__}"), {}
    return dict(state), {key.removesuffix(ALPHA): float(alpha) for key, alpha in (alphas or {}).items()}


def _by_kohya(file: Path, tensors: Mapping[str, Tensor], model: _Model, why: str) -> dict[str, Tensor]:
    """The same for layouts of kohya's that diffusers does not read, or not at every width."""
    try:
        state = kohya.of_others(model.modules[model.main][""], tensors)
    except ValueError as error:
        raise ValueError(f"{shown(file)} cannot be understood: {why}; and {error}") from error
    return {f"{model.main}.{key}": tensor for key, tensor in state.items()}


def _said(file: Path, metadata: Mapping[str, str], layers: Collection[str], main: str) -> dict[str, float]:
    """The alphas of layers, by `network.module`, as they are said beside the tensors; none where nothing is."""
    if ALPHAS in metadata:
        return {layer: float(alpha) for layer, alpha in json.loads(metadata[ALPHAS]).items()}
    spec, beside = file.parent.parent.parent / "spec.toml", file.parent / "adapter_config.json"
    config: Mapping[str, Any] = {}
    if (file.parent / "state.json").is_file() and spec.is_file():
        table = tomllib.loads(spec.read_text(encoding="utf-8")).get("lora", {})
        config = {"r": table.get("rank"), "lora_alpha": table["alpha"]} if "alpha" in table else {}
    elif LORA_ADAPTER_METADATA_KEY in metadata:
        config = {k.removeprefix(f"{main}."): v for k, v in json.loads(metadata[LORA_ADAPTER_METADATA_KEY]).items()}
    elif beside.is_file():
        config = json.loads(beside.read_text(encoding="utf-8"))
    return {layer: _alpha(config, layer.partition(".")[2]) for layer in layers if "lora_alpha" in config}


def _alpha(config: Mapping[str, Any], module: str) -> float:
    """What peft's config says of a module; with `use_rslora` outputs are scaled by alpha / sqrt(r)."""
    alphas, ranks = config.get("alpha_pattern") or {}, config.get("rank_pattern") or {}
    alpha = float(alphas.get(get_pattern_key(alphas, module), config["lora_alpha"]))
    return alpha * ranks.get(get_pattern_key(ranks, module), config["r"]) ** 0.5 if config.get("use_rslora") else alpha


def _refuse_unless_layer(file: Path, model: _Model, name: str, module: str) -> None:
    if name not in model.modules:
        raise ValueError(f"{shown(file)} has LoRA for `{name}`, which is not trained here (`{module}`)")
    if module not in model.modules[name]:
        near = did_you_mean(module, model.modules[name])
        what = f"{shown(file)} adapts `{module}`, which `{name}` does not have"
        raise ValueError(what + (f"; {near}" if near else ""))
    if not isinstance(layer := model.modules[name][module], LAYERS):
        raise ValueError(f"{shown(file)} adapts `{module}` of `{name}`, a {type(layer).__name__}, which cannot be done")


def _widths(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the two factors for a layer."""
    if isinstance(layer, nn.Linear):
        return (rank, layer.in_features), (layer.out_features, rank)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    kernel = layer.kernel_size
    return (rank, layer.in_channels, *kernel), (layer.out_channels, rank, *(1 for _ in kernel))


# --- whole networks ------------------------------------------------------------------------------------------------


def _whole(title: str, found: holdings.Holding, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters by `network.parameter`, each as the networks have it; not those of networks that are not asked for."""
    read: dict[str, Tensor] = {}
    own = {folder: files for folder, files in found.files.items() if folder in networks}
    for folder, files in (own or found.files).items():
        for file in files:
            prefix = f"{folder}." if folder else ""
            read |= {f"{prefix}{key}": tensor for key, tensor in load_file(file).items()}
    if not any(key.partition(".")[0] in networks for key in read) and len(networks) == 1:
        read = {f"{next(iter(networks))}.{key}": tensor for key, tensor in read.items()}
    expected = {f"{n}.{path}": p for n, network in networks.items() for path, p in network.named_parameters()}
    buffers = {f"{n}.{path}" for n, network in networks.items() for path, _ in network.named_buffers()}
    if surplus := sorted(read.keys() - expected.keys() - buffers):
        raise ValueError(f"{title} has `{surplus[0]}`, which the model does not ({len(surplus)} such weights)")
    for name, parameter in expected.items():
        has = tuple(read[name].shape) if name in read else "none"
        if has != tuple(parameter.shape):
            raise ValueError(f"{title} is of another network: {name} has the shape {has}, not {tuple(parameter.shape)}")
    return {name: read[name] for name in expected}


def merged(weight: Tensor, lora: LowRank, module: str) -> Tensor:
    """A layer's weight with its LoRA added, in float32.

    Raises:
        ValueError: it is no matrix.
    """
    a, b = (factor.to(weight.device, torch.float32) for factor in lora.factors[module])
    if weight.dim() != 2:
        raise ValueError(f"the LoRA of `{module}` is of a convolution, and cannot be added to its weights here")
    return weight.float() + b @ a * (lora.alphas[module] / len(a))
