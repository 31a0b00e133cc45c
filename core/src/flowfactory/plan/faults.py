"""What can be seen to be wrong with a model's files before they are read: absent, cut, pointers, of other variants."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowfactory.builtin import PipelineSpec
from flowfactory.data.refusals import end_waiting, refusal
from flowfactory.errors import Problem, SpecError
from flowfactory.plan import checkpoint, headers
from flowfactory.plan.checkpoint import FILE, OTHERS, Folder, Part, on_disk
from flowfactory.spec import holdings
from flowfactory.spec.holdings import INDEX
from flowfactory.spec.tables import Full, Memory, Spec

LIBRARIES = {
    "auto-round": ("auto_round", "auto-round"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "gguf": ("gguf", "gguf"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "quanto": ("optimum", "optimum-quanto"),
    "torchao": ("torchao", "torchao"),
}
"""What reads weights in fewer bits, by the `quant_method` of a config: package and distribution. A config can come from
anybody, so nothing else that it names is advised to be installed."""

BESIDE = (".bin", ".json", ".model", ".txt")
"""Files of a pipeline's parts beside safetensors: only how they begin can be looked at."""

_LORA = re.compile(r"lora_(A|B|up|down|a|b)\b|lora\.(up|down)\b")
_SCALES = (".scale_weight", ".weight_scale", ".scale_input", ".input_scale", "scaled_fp8", ".comfy_quant")
"""In the names of what a LoRA has; how those of scales end, as ComfyUI has them beside weights of 8 bits."""

_PICKLED = (
    "such a file may run anything when it is read; write its tensors to another with safetensors.torch.save_file, "
    "having read them with torch.load(…, weights_only=True)"
)
_ENDINGS = {
    ".sft": "if it is one by another name, as .sft files are, let its name end in .safetensors",
    **dict.fromkeys((".bin", ".ckpt", ".pt", ".pth"), _PICKLED),
}
"""What can be done with a file that holds one network, by how its name ends."""

Fault = tuple[str, str]
"""What is wrong, and what to do about it."""

EVERY_WEIGHT = "[full] trains every weight"
"""With what networks in fewer bits do not go together, as those of `in_pieces`."""


def in_files(own: PipelineSpec, configs: bool = False) -> Iterator[Fault]:
    """Everything that is wrong with a model's files by themselves; to look takes no network and no torch.

    Args:
        configs: whether those of a pipeline without any weights will do.
    """
    yield from _file_faults(own)
    if not Path(own.path).is_absolute() and (wrong := [*_id_faults(own.path)]):
        yield from wrong
    elif (Path(own.path).parent / INDEX).is_file() and not (Path(own.path) / INDEX).is_file():
        yield f"path {own.path} is a part of a pipeline", f"set [model] path to {Path(own.path).parent}"
    elif Path(own.path).is_file():
        hint = "set [model] path to the pipeline's folder or hub id, and [model] single_file to this file"
        yield f"path {own.path} is one file, and a pipeline has several models", hint
    elif Path(own.path).is_dir() and not (Path(own.path) / INDEX).is_file():
        yield f"path {own.path} is no diffusers pipeline: it has no {INDEX}", ""
    elif Path(own.path).is_absolute() and (folder := on_disk(own)):
        yield from _folder_faults(own, folder, configs)


def on_the_hub(own: PipelineSpec, needed: bool) -> Iterator[Fault]:
    """That the hub does not give a pipeline that is not here; or, where it is `needed`, cannot be asked."""
    if Path(own.path).is_absolute() or any(_id_faults(own.path)) or on_disk(own):
        return
    refused = checkpoint.on_the_hub(own, lambda hub: None)
    if refused is not None and (needed or refused.final):
        yield f"path {refused.what}", refused.hint


def in_weights_of_the_hub(location: str) -> Iterator[Fault]:
    """That the hub does not give LoRA or networks that are not here; nothing of them is fetched."""
    if Path(location).is_absolute() or holdings.find(location):
        return
    from huggingface_hub import HfApi

    end_waiting()
    try:
        HfApi().auth_check(location)
    except Exception as error:  # of whatever library the connection is made with
        if refused := refusal(error, location):
            yield refused.what, refused.hint


def in_precision(own: PipelineSpec) -> Iterator[Fault]:
    """What is missing for networks that come in fewer bits, or does not go together with that in `[model]`."""
    for name, method in _stored(own):
        package, install = LIBRARIES.get(method, ("", ""))
        if package and importlib.util.find_spec(package) is None:
            yield f"path {own.path}: {name} is read by {install}, which is not installed", f"pip install {install}"
    if own.quantize is not None:
        yield from in_fewer_bits(own, f'quantize = "{own.quantize}" would round it again')


def in_fewer_bits(own: PipelineSpec, clash: str) -> Iterator[Fault]:
    """That a trained network comes in fewer bits, with which something else does not go together."""
    for name, method in _stored(own):
        if own.trains(name):
            yield f"path {own.path}: {name} is stored in fewer bits by {method}, and {clash}", "leave that out"


def in_pieces(own: PipelineSpec, memory: Memory) -> Iterator[Fault]:
    """That a trained network comes in fewer bits, and its weights are not to lie on the device in one piece."""
    if memory.shard:
        yield from in_fewer_bits(own, "[memory] shard cannot divide it")
    if "weights" in memory.offload:
        yield from in_fewer_bits(own, '[memory] offload = ["weights"] cannot stream it')


def refuse(spec: Spec) -> None:
    """Look at a model's files again, as before a run goes on.

    Raises:
        SpecError: with everything that is wrong with them.
    """
    own = spec.model.spec
    if not isinstance(own, PipelineSpec):
        return
    wrong = [*in_files(own), *in_precision(own), *on_the_hub(own, needed=True)]
    if isinstance(spec.tuning, Full):
        wrong += in_fewer_bits(own, EVERY_WEIGHT)
    wrong += in_pieces(own, spec.memory)
    _raise(wrong)


def refuse_absent(spec: Spec) -> None:
    """See that a model is here or the hub gives it, before a library asks for each of its files again and again.

    Raises:
        SpecError: it is not here, and the hub does not give it.
    """
    if isinstance(spec.model.spec, PipelineSpec):
        _raise([*on_the_hub(spec.model.spec, needed=True)])


def _raise(wrong: Sequence[Fault]) -> None:
    if wrong:
        raise SpecError([Problem("checkpoint", f"[model] {what}", None, hint) for what, hint in wrong])


def _id_faults(name: str) -> Iterator[Fault]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        yield f"path `{name}` is neither a folder here nor the id of a model on the hub: {error}", ""


def _file_faults(own: PipelineSpec) -> Iterator[Fault]:
    if own.single_file is None:
        return
    file = Path(own.single_file)
    if file.suffix not in (".safetensors", ".gguf"):
        yield f"single_file {file} is neither a .safetensors nor a .gguf file", _ENDINGS.get(file.suffix.lower(), "")
        return
    try:
        held = headers.weights(file).tensors
    except (ValueError, OSError) as error:
        yield f"single_file {file} {error}", ""
        return
    yield from _content_faults(file, {name: t for name, t in held.items() if not name.startswith(OTHERS)})
    if file.suffix == ".gguf" and importlib.util.find_spec("gguf") is None:
        yield f"single_file {file} is read by gguf, which is not installed", 'pip install "flowfactory[gguf]"'


def _content_faults(file: Path, held: Mapping[str, headers.Tensor]) -> Iterator[Fault]:
    """What diffusers would read without a word, or with words of its own, and take for the network's weights."""
    if lora := next((name for name in held if _LORA.search(name)), None):
        yield f"single_file {file} is a LoRA, no network: it has `{lora}`", "to begin with it, set [lora] from"
    elif scale := next((name for name in held if name.endswith(_SCALES)), None):
        what = f"has weights that are to be multiplied by others beside them, as `{scale}`, which diffusers does not"
        yield f"single_file {file} {what}", "use a file of bf16 or .gguf"
    elif packed := next((n for n, t in held.items() if t.format in ("U8", "I8") and n.endswith("weight")), None):
        what = f"has weights in fewer bits, as `{packed}`, which are read from a pipeline's folder only"
        yield f"single_file {file} {what}", "use a file of bf16 or .gguf"


def _folder_faults(own: PipelineSpec, folder: Folder, configs: bool) -> Iterator[Fault]:
    path = own.path
    for name in folder.names:
        if "/" in name and name.endswith(BESIDE) and not name.endswith(("config.json", ".index.json")):
            try:
                headers.refuse_empty(folder.path / name)
            except (ValueError, OSError) as error:
                yield f"path {path}: {name} {error}", ""
    try:
        models, table = folder.models(), folder.table(INDEX)
    except (ValueError, OSError) as error:
        yield f"path {path}: {INDEX} {error}", ""
        return
    for name in checkpoint.parts_of(table):
        if not any(file.startswith(f"{name}/") for file in folder.names):
            yield (
                f"path {path} lacks its part `{name}`: {INDEX} names it, and there is no such folder, or nothing in it",
                "",
            )
            models = [model for model in models if model != name]
    variants = {name: _variants(folder, name) for name in models}
    if models and not any(variants.values()):
        if not configs:
            what = f"path {path} has configs, and no weights of any part: {', '.join(models)}"
            yield what, "a run needs them; `flowfactory plan --exact` does not"
        return
    if own.variant and not any(own.variant in found for found in variants.values()):
        there = sorted({v for found in variants.values() for v in found if v})
        yield f"variant `{own.variant}` is of no part of {path}; there is {', '.join(there) or 'none'}", ""
        return
    read = {name: found for name, found in variants.items() if not (own.single_file and own.trains(name))}
    yield from _variant_faults(own, read)
    for name, found in read.items():
        yield from _model_faults(own, folder, name, found)


def _variants(folder: Folder, model: str) -> set[str | None]:
    """The variants that a model has; `None` among them is the one without a name."""
    matches = [FILE.fullmatch(name.partition("/")[2]) for name in folder.names if name.startswith(f"{model}/")]
    return {match["variant"] or match["late"] for match in matches if match}


def _variant_faults(own: PipelineSpec, variants: Mapping[str, set[str | None]]) -> Iterator[Fault]:
    """Models that come only as a variant which is not asked for: once for all that come as the same."""
    only: dict[tuple[str, ...], list[str]] = {}
    for name, found in variants.items():
        if found and not found & {None, own.variant}:
            only.setdefault(tuple(sorted(v for v in found if v)), []).append(f"`{name}`")
    for there, names in only.items():
        parts = f"part{'s' * (len(names) > 1)} {', '.join(names)}"
        what = f"path {own.path} has weights of its {parts} as the variant {' and '.join(there)} only"
        yield what, f'set [model] variant = "{there[0]}"'


def _model_faults(own: PipelineSpec, folder: Folder, name: str, variants: set[str | None]) -> Iterator[Fault]:
    path = own.path
    if not variants:
        yield f"path {path} has no weights for its part `{name}`", ""
    read = folder.files(name, own.variant)
    for index in [n for n in folder.names if n.startswith(f"{name}/") and ".safetensors.index" in n]:
        if index.endswith(f".index.{own.variant}.json" if own.variant in variants - {None} else ".index.json"):
            yield from _shard_faults(path, folder, name, index)
    for file in [f"{name}/config.json", *read]:
        try:
            if file.endswith(".json"):
                if file not in folder.names:
                    raise ValueError("is missing")
                folder.table(file)
            else:
                folder.weights(file)
        except (ValueError, OSError) as error:
            yield f"path {path}: {file} {error}", ""


def _shard_faults(path: str, folder: Folder, name: str, index: str) -> Iterator[Fault]:
    try:
        wanted = sorted(set(folder.table(index)["weight_map"].values()))
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        yield f"path {path}: {index} is no index of shards: {error}", ""
        return
    if missing := [shard for shard in wanted if f"{name}/{shard}" not in folder.names]:
        what = f"{', '.join(missing[:3])} of {len(wanted)} files that {index} names"
        yield f"path {path}: its part `{name}` lacks {what}", ""


def _stored(own: PipelineSpec) -> Iterator[tuple[str, str]]:
    """The models that come in fewer bits, and by what."""
    here = Path(own.path).is_dir() if Path(own.path).is_absolute() else not [*_id_faults(own.path)]
    folder = on_disk(own) if here else None
    if folder is None:
        return
    with suppress(ValueError, OSError):
        for name in folder.models():
            with suppress(ValueError, OSError):
                if method := _method(own, name, folder.table(f"{name}/config.json")):
                    yield name, method


def _method(own: PipelineSpec, name: str, config: Mapping[str, Any]) -> str:
    """By what a model's weights are stored in fewer bits; empty if they are not."""
    if own.single_file and own.trains(name):
        return "gguf" if own.single_file.endswith(".gguf") else ""
    return Part({}, config).quantized
