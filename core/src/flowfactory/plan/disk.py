"""What this disk says about a spec before anything is loaded: checkpoint, cache, data (`prompts`). No torch."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Size
from flowfactory.contracts.specs import AdapterSpec, SchedulerSpec
from flowfactory.data.text import path_of
from flowfactory.errors import DONE, Place, Problem, did_you_mean, listed, shown
from flowfactory.plan import bases, faults, prompts
from flowfactory.plan.checkpoint import Folder, Part, on_disk, parts
from flowfactory.plan.geometry import geometry, multiples
from flowfactory.spec.holdings import INDEX
from flowfactory.spec.rules.rule import Rule, Where
from flowfactory.spec.rules.teams import together, told
from flowfactory.spec.tables import Component, Full, Memory, RewardEntry, Sampling

UNUSUAL_LR = 0.1

GPUS = Path("/proc/driver/nvidia/gpus")
OTHERS = ("/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu")
"""Where a Linux kernel shows NVIDIA's GPUs; and what there is where torch may find some that are not shown there."""


TEAMED = (
    *("ChronoEditTransformer3DModel", "Flux2Transformer2DModel", "FluxTransformer2DModel"),
    *("QwenImageTransformer2DModel", "WanTransformer3DModel"),
)
"""Networks that several processes can compute together: diffusers divides their tokens, and not only to sample."""
MASKED = ("QwenImageTransformer2DModel",)
"""Those whose prompts have masks, and are made as long as divides."""


def _files(where: Where, model: AdapterSpec, configs: bool = False) -> Iterator[Problem]:
    if isinstance(model, PipelineSpec):
        return _faults(where, faults.in_files(model, configs))
    return _is_file(where, model)


def _given(where: Where, model: AdapterSpec, needed: bool) -> Iterator[Problem]:
    return _faults(where, faults.on_the_hub(model, needed) if isinstance(model, PipelineSpec) else ())


def _begun(where: Where, location: str | None) -> Iterator[Problem]:
    for what, hint in faults.in_weights_of_the_hub(location) if location else ():
        yield Problem("from", f"[lora] from {what}", where("lora", "from"), hint)


def _is_file(where: Where, own: AdapterSpec) -> Iterator[Problem]:
    if Path(own.path).is_file():
        what = f"{shown(Path(own.path))} is a file; a checkpoint is a folder"
        yield Problem("checkpoint", what, where("model", "path"))


def _stored(where: Where, model: AdapterSpec) -> Iterator[Problem]:
    return _faults(where, faults.in_precision(model) if isinstance(model, PipelineSpec) else ())


def _stored_and_full(where: Where, own: AdapterSpec, _: Full) -> Iterator[Problem]:
    return _faults(where, faults.in_fewer_bits(own, faults.EVERY_WEIGHT) if isinstance(own, PipelineSpec) else ())


def _stored_and_memory(where: Where, own: AdapterSpec, memory: Memory) -> Iterator[Problem]:
    return _faults(where, faults.in_pieces(own, memory) if isinstance(own, PipelineSpec) else ())


def _faults(where: Where, found: Iterable[faults.Fault]) -> Iterator[Problem]:
    return (Problem("checkpoint", f"[model] {what}", where("model", "path"), hint) for what, hint in found)


def _kind(where: Where, model: Component) -> Iterator[Problem]:
    own = model.spec
    kind = _pipeline(own) if own.pipelines else None
    if kind is not None and kind not in own.pipelines:
        what = f"adapter `{model.name}` drives {' or '.join(own.pipelines)}, but {shown(Path(own.path))} is a {kind}"
        yield Problem("pipeline", what, where("model", "path"), "set [model] name to that pipeline's adapter")


def _distilled(
    where: Where, model: AdapterSpec, sampling: Sampling, scheduler: SchedulerSpec, trainer: Component
) -> Iterator[Problem]:
    embeds = any(part.config.get("guidance_embeds") for name, part in _parts(model).items() if model.trains(name))
    if (found := bases.distilled(model, embeds)) is not None:
        what, hint = bases.advice(found, sampling, scheduler, trainer.spec, trainer.name)
        yield Problem("distilled", what, where("model", "path"), hint, DONE)


def _packages(where: Where, model: AdapterSpec) -> Iterator[Problem]:
    for module, install in model.packages().items():
        if importlib.util.find_spec(module) is None:
            what = f"the model needs the package `{module}`, which is not installed"
            yield Problem("package", what, where("model"), f'pip install "{install}"')


def _fewer_bits(where: Where, bits: int) -> Iterator[Problem]:
    if bits == 8 and importlib.util.find_spec("bitsandbytes") is None:
        what = "[optimizer] bits = 8 needs the package `bitsandbytes`, which is not installed"
        yield Problem("package", what, where("optimizer", "bits"), 'pip install "flowfactory[bitsandbytes]"')


def _sampled(where: Where, model: AdapterSpec, size: Size) -> Iterator[Problem]:
    return _size(where, where("sampling", "size"), model, size)


def _evaluated(where: Where, model: AdapterSpec, size: Size | None) -> Iterator[Problem]:
    return iter(()) if size is None else _size(where, where("eval", "size"), model, size)


def _size(where: Where, place: Place, own: AdapterSpec, size: Size) -> Iterator[Problem]:
    return where.each([_sides(place, own, size), _frames(place, own, size)])


def _sides(place: Place, own: AdapterSpec, size: Size) -> Iterator[Problem]:
    step, _ = multiples(own, _parts(own))
    if size.height % step or size.width % step:
        near = [_near(side, step) for side in (size.height, size.width)]
        nearest = " or ".join(dict.fromkeys(f"{a}x{b}" for a, b in zip(*near, strict=True)))
        what = f"the checkpoint makes sizes that are multiples of {step}, not {size.height}x{size.width}"
        yield Problem("size", what, place, f"the nearest are {nearest}")


def _frames(place: Place, own: AdapterSpec, size: Size) -> Iterator[Problem]:
    if own.makes == "image" and size.frames > 1:
        yield Problem("size", f"the adapter makes images, not {size.frames} frames", place)
    elif own.makes == "video" and (size.frames - 1) % (slower := multiples(own, _parts(own))[1]):
        low = (size.frames - 1) // slower * slower + 1
        what = f"the checkpoint makes 1 frame and multiples of {slower} more, not {size.frames}"
        yield Problem("size", what, place, f"the nearest are {low} and {low + slower}")


def _near(side: int, step: int) -> tuple[int, int]:
    """The nearest multiples of `step`, below and above; both the same for one of them."""
    return max(side // step * step, step), max(-(-side // step) * step, step)


def _tokens(where: Where, own: AdapterSpec, memory: Memory, size: Size | None, table: str) -> Iterator[Problem]:
    if together(memory) == 1 or size is None:
        return
    try:
        at = geometry(own, size, _parts(own))
    except (KeyError, StopIteration, ValueError):  # what configs do not say is found out when a run begins
        return
    padded = any(part.config.get("_class_name") in MASKED for part in _parts(own).values())
    for what, count in (("prompt", 0 if padded else at.text), ("sample", at.tokens - at.text)):
        if count % together(memory):
            wrong = f"{told(memory)} does not divide the {count} tokens of a {what}"
            yield Problem("teams", wrong, where(table, "size"), "choose a number that does, or another size")


def _teams(where: Where, own: AdapterSpec, memory: Memory) -> Iterator[Problem]:
    trained = {name: part.config for name, part in _parts(own).items() if own.trains(name)}
    for name, config in trained.items() if together(memory) > 1 else ():
        kind, heads = config.get("_class_name"), config.get("num_attention_heads")
        if kind not in TEAMED:
            what = f"{told(memory)}: tokens of {name}, a {kind}, cannot be divided among processes"
            yield Problem("teams", what, where("memory"), f"leave it out; those of {listed(TEAMED)} can")
        elif kind in MASKED and (memory.ring > 1 or memory.attention not in (None, "native")):
            what = f"{told(memory)}: {name}, a {kind}, masks its prompts: torch alone divides that, by ulysses"
            yield Problem("teams", what, where("memory"), "leave out [memory] ring and attention")
        elif isinstance(heads, int) and heads % memory.ulysses:
            what = f"[memory] ulysses = {memory.ulysses} does not divide the {heads} attention heads of {name}"
            yield Problem("teams", what, where("memory", "ulysses"), f"set it to a divisor of {heads}")


def _targets(where: Where, own: AdapterSpec, targets: Sequence[str] | None) -> Iterator[Problem]:
    networks = {name: part for name, part in _parts(own).items() if own.trains(name)}
    if networks:
        yield from where.each(_target(where, networks, target, i) for i, target in enumerate(targets or ()))


def _target(where: Where, networks: Mapping[str, Part], target: str, number: int) -> Iterator[Problem]:
    place, adapted = where("lora", "targets", number), [n for n, part in networks.items() if part.adapted([target])]
    if not adapted:
        names = [layer for part in networks.values() for layer in part.linear()]
        ends = {".".join(layer.split(".")[-length:]) for layer in names for length in (1, 2, 3)}
        what = f"no layer of {', '.join(networks)} ends in `{target}`, so nothing would be trained there"
        hint = did_you_mean(target, ends) or f"ends are, for one: {listed(sorted(ends)[:8])}"
        yield Problem("target", what, place, hint)
    elif len(adapted) < len(networks):
        what = f"`{target}` is in {', '.join(adapted)} only, of {', '.join(networks)}"
        yield Problem("target", what, place, code=DONE)


def _cache(where: Where, cache: str | None) -> Iterator[Problem]:
    if cache is None:
        return
    try:
        folder = path_of(cache, Path.cwd())
    except ValueError as error:
        yield Problem("cache", f"`cache`: {error}", where("memory", "cache"))
        return
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = f"`cache`: {shown(folder)} cannot be written: {there} is {'not ours' if there.is_dir() else 'a file'}"
        yield Problem("cache", what, where("memory", "cache"))


def _lr(where: Where, lr: float) -> Iterator[Problem]:
    if lr > UNUSUAL_LR:
        what = f"a learning rate of {lr:g} is far above what works; about 1e-4 is usual for LoRA"
        yield Problem("unusual-lr", what, where("optimizer", "lr"), code=DONE)


def _devices(where: Where, rewards: Sequence[RewardEntry]) -> Iterator[Problem]:
    """A note, for the run may be meant for another machine; one that begins here is refused."""
    return where.each(_device(where, entry, number) for number, entry in enumerate(rewards))


def _device(where: Where, entry: RewardEntry, number: int) -> Iterator[Problem]:
    kind, _, index = (entry.device or "").partition(":")
    if kind == "cuda" and int(index or 0) >= gpus():
        what = f"reward `{entry.label}` is to compute on `{entry.device}`, which this machine does not have"
        yield Problem("device", what, where("reward", number, "device"), "a run here is refused", code=DONE)


def gpus() -> float:
    """How many GPUs there are for torch's `cuda`; infinite where that cannot be seen without asking torch."""
    if GPUS.is_dir():
        return len(list(GPUS.iterdir()))
    return math.inf if not Path("/proc").is_dir() or any(Path(other).exists() for other in OTHERS) else 0


RULES: tuple[Rule, ...] = (
    (("model.spec",), _files),
    (("model.spec",), _stored),
    (("model.spec", "full"), _stored_and_full),
    (("model.spec", "memory"), _stored_and_memory),
    (("model",), _kind),
    (("model.spec",), _packages),
    (("optimizer.bits",), _fewer_bits),
    (("model.spec", "sampling", "scheduler.spec", "trainer"), _distilled),
    (("model.spec", "sampling.size"), _sampled),
    (("model.spec", "eval.size"), _evaluated),
    (("model.spec", "memory"), _teams),
    (("model.spec", "memory", "sampling.size"), functools.partial(_tokens, table="sampling")),
    (("model.spec", "memory", "eval.size"), functools.partial(_tokens, table="eval")),
    (("model.spec", "lora.targets"), _targets),
    *prompts.RULES,
    (("memory.cache",), _cache),
    (("optimizer.lr",), _lr),
    (("rewards",), _devices),
)

RULES_OF_CONFIGS: tuple[Rule, ...] = ((("model.spec",), functools.partial(_files, configs=True)), *RULES[1:])
"""Where a pipeline's configs will do in the place of its weights."""

ON_THE_HUB: Rule = (("model.spec",), functools.partial(_given, needed=False))
BEFORE_A_RUN: tuple[Rule, ...] = (
    *RULES,
    (("model.spec",), functools.partial(_given, needed=True)),
    (("lora.from_",), _begun),
)
"""Where the hub is asked for what is not here."""


# --- reading -------------------------------------------------------------------------------------------------------


def _folder(own: AdapterSpec) -> Folder | None:
    """Where the checkpoint lies, if it does. The hub's library takes longer to import than all the rest of a check."""
    if Path(own.path).is_absolute() or (_hub() / f"models--{own.path.replace('/', '--')}").is_dir():
        return on_disk(own)
    return None


def _hub() -> Path:
    """Where the hub's library keeps what it fetched."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def _pipeline(own: AdapterSpec) -> str | None:
    """The class of the checkpoint's pipeline; `None` where it is not here or does not say."""
    folder = _folder(own)
    try:
        return None if folder is None else str(folder.table(INDEX)["_class_name"])
    except (OSError, ValueError, KeyError):
        return None


def _parts(own: AdapterSpec) -> Mapping[str, Part]:
    """The models of the checkpoint; none where it is not here, or damaged, which is told by another rule."""
    folder = _folder(own)
    try:
        return {} if folder is None else parts(folder, own)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
