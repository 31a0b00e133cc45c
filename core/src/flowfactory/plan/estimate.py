"""What a run will need in memory, before anything is loaded: from the spec and the headers of the checkpoint.

Weights are counted; see `working` for what passes through them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.specs import AdapterSpec
from flowfactory.data.refusals import Refusal
from flowfactory.errors import Problem, SpecError
from flowfactory.plan import checkpoint
from flowfactory.plan.checkpoint import Part
from flowfactory.plan.counts import undoes
from flowfactory.plan.working import BYTES, Measured, Need, count_of, frozen_bytes, readable, streamed, working
from flowfactory.spec import holdings
from flowfactory.spec.tables import Full, Spec

UNCOUNTED = "the model's weights cannot be counted"

UNKNOWN = "is not on this disk, and would say"
"""Of what is read from elsewhere: the LoRA to begin with, and sets that never move."""


@attrs.frozen
class Estimate:
    """What one process needs.

    parts: what there is. phases: what of it is there at the same time; what is not known is not in the sums.
    """

    parts: tuple[Need, ...]
    phases: tuple[Need, ...]

    def __getitem__(self, name: str) -> int | None:
        return next(need.bytes for need in (*self.parts, *self.phases) if need.name == name)

    def as_json(self) -> dict[str, Any]:
        """Both, as lists of tables."""
        return attrs.asdict(self)


def estimate(
    spec: Spec,
    world: int = 1,
    fetch: bool = False,
    known: Mapping[str, Part] | None = None,
    measured: Measured | None = None,
) -> Estimate:
    """What each of `world` processes needs.

    Args:
        fetch: whether to ask the hub for configs and headers of a checkpoint that is not on this disk.
        known: the models by their configs, for those whose weights are not on this disk.
        measured: what a sample takes, where that was measured.

    Raises:
        SpecError: the model's files, or its prompts, cannot be read; or the hub does not give the model.
    """
    own: AdapterSpec = spec.model.spec
    found, why = _parts(own, fetch, known or {})
    if not any(own.trains(name) for name in found):
        return Estimate((Need("weights", None, f"{own.path} {why}"),), ())
    needs = (*_weights(spec, found, world if spec.memory.shard else 1), *working(spec, found, world, measured))
    return Estimate(needs, tuple(_phases(spec, found, needs)))


def checkpoint_bytes(spec: Spec) -> int | None:
    """What a checkpoint takes on the disk, whole whatever the number of processes; `None` where nobody can know yet.

    Raises:
        SpecError: the model's files cannot be read.
    """
    found, _ = _parts(spec.model.spec, fetch=False, known={})
    sizes = [need.bytes for need in _weights(spec, found, 1) if need.name in ("trained", "moments", "sets")]
    known = [size for size in sizes if size is not None]
    return sum(known) if any(known) and len(known) == len(sizes) else None


def models(spec: Spec, known: Mapping[str, Part]) -> dict[str, Part]:
    """The models of the checkpoint, none where they cannot be counted; `known` is as above.

    Raises:
        SpecError: they cannot be read.
    """
    return _parts(spec.model.spec, True, known)[0]


def _parts(own: AdapterSpec, fetch: bool, known: Mapping[str, Part]) -> tuple[dict[str, Part], str]:
    """The models of a checkpoint, or why there are none to count.

    Raises:
        SpecError: they cannot be read, or the hub does not give them.
    """
    try:
        return _found(own, fetch, known)
    except (ValueError, OSError) as error:
        raise SpecError([Problem("checkpoint", f"[model] path {own.path} {error}")]) from error


def _found(own: AdapterSpec, fetch: bool, known: Mapping[str, Part]) -> tuple[dict[str, Part], str]:
    here = checkpoint.on_disk(own)
    found = dict(known) if here is None else checkpoint.parts(here, own, known)
    if any(own.trains(name) for name in found) or Path(own.path).is_absolute():
        return found, "has no weights to count: they are in no .safetensors files"
    why = "is not on this disk" if here is None else "has no weights on this disk"
    if fetch:
        there = checkpoint.on_the_hub(own, lambda hub: checkpoint.parts(hub, own))
        if not isinstance(there, Refusal):
            return there, "has no weights to count: they are in no .safetensors files"
        if there.final:
            raise SpecError([Problem("checkpoint", f"[model] path {there.what}", None, there.hint)])
        why += f", and {there.why}"
    counted = "" if here is None else "; `--exact` counts by its configs"
    return {}, f"{why}: unknown until it is downloaded{counted}"


# --- weights: counted ----------------------------------------------------------------------------------------------


def _weights(spec: Spec, parts: Mapping[str, Part], share: int) -> Iterator[Need]:
    own, size, precision = spec.model.spec, BYTES[spec.run.precision], spec.run.precision
    divided = f" / {share} processes" if share > 1 else ""
    others = {name: part for name, part in parts.items() if "transformer" not in name}
    encoders = {name: part for name, part in others.items() if not name.startswith("vae")}
    for name, those in (("encoders", encoders), ("vae", {n: p for n, p in others.items() if n.startswith("vae")})):
        why = _stored(those, size) + ("; gone once prompts are encoded" if name == "encoders" else "")
        yield Need(name, sum(part.bytes(size) for part in those.values()), why)
    full = isinstance(spec.tuning, Full)
    frozen = {n: p for n, p in parts.items() if "transformer" in n and not (full and own.trains(n))}
    kind = _kind(spec)
    stored = sum(frozen_bytes(part, size, kind, share) for part in frozen.values())
    if any(part.fixed for part in frozen.values()):
        why = _stored(frozen, size)
    else:
        total = sum(part.parameters for part in frozen.values())
        why = f"{count_of(total)} parameters of the networks in {kind or precision}{divided}"
    if "weights" in spec.memory.offload:
        yield from streamed(frozen, size)
    else:
        yield Need("frozen", stored, why)
    count, how = trained(spec, parts)
    if count is None:
        names = ("trained", "gradients", "moments", *(["sets"] if _sets(spec) else []), "copies")
        yield from (Need(name, None, f"unknown: {how}") for name in names)
    else:
        yield from _moving(spec, count, how, share)
    if spec.sampling.merged:
        yield _merged(spec, parts, share)
    if spec.trainer.spec.needs.loaded:
        network = sum(part.parameters for name, part in parts.items() if own.trains(name))
        count, how = _loaded(spec, network)
        why = f"unknown: {how}" if count is None else f"{count_of(count)} parameters x {size} bytes{divided}: {how}"
        yield Need("loaded", None if count is None else count * size // share, why)


def _merged(spec: Spec, parts: Mapping[str, Part], share: int) -> Need:
    """The weights that LoRA is added to, once more."""
    own, size = spec.model.spec, BYTES[spec.run.precision]
    networks = [part for name, part in parts.items() if own.trains(name)]
    if isinstance(spec.tuning, Full) or spec.tuning.from_ is not None or any(part.unknown for part in networks):
        return Need("merged", None, "unknown: what is at hand does not say which layers LoRA adapts")
    targets = spec.tuning.targets or own.targets
    count = sum(rows * columns for part in networks for rows, columns in part.adapted(targets))
    divided = f" / {share} processes" if share > 1 else ""
    return Need("merged", count * size // share, f"{count_of(count)} adapted weights x {size} bytes{divided}")


def _moving(spec: Spec, count: int, how: str, share: int) -> Iterator[Need]:
    """What there is of each of `count` trained parameters."""
    size, precision = BYTES[spec.run.precision], spec.run.precision
    divided = f" / {share} processes" if share > 1 else ""
    yield Need("trained", count * 4 // share, f"{count_of(count)} parameters x 4 bytes{divided}: {how}")
    yield Need("gradients", count * 4 // share, f"{count_of(count)} x 4 bytes{divided}")
    roles = spec.trainer.spec.needs.roles
    moments, each = spec.optimizer.bits // 4 * (1 + len(roles)), ", ".join(["the trained weights", *roles])
    why = f"AdamW's two, of {spec.optimizer.bits} bits each{divided}" + (f", of {each}" if roles else "")
    why += "; in main memory, but for a part of them while a step is made" if _rests(spec) else ""
    yield Need("moments", count * moments // share, why)
    sets = _sets(spec)
    why = f"{len(sets)} further float32 sets{divided}" + (f": {', '.join(sets)}" if sets else "")
    yield Need("sets", count * 4 * len(sets) // share, why)
    if undoes(spec) and spec.checkpoint.every != 1:
        why = f"in main memory, for an end while an epoch trains: trained weights, moments and sets once more{divided}"
        yield Need("undo", count * (4 + moments + 4 * len(sets)) // share, why)
    copies = count * size if size < 4 else 0
    yield Need("copies", copies, f"trained weights in {precision}, which is computed in" if copies else "none in fp32")


def _stored(parts: Mapping[str, Part], size: int) -> str:
    """How many bytes models take, in words."""
    said = []
    for name, part in parts.items():
        told = f"{name}: {count_of(part.parameters)} parameters" + ("" if part.fixed else f" x {size} bytes")
        said.append(told + (f", {readable(part.fixed)} of them in fewer bits" if part.fixed else ""))
    return "; ".join(said) or "none"


def trained(spec: Spec, parts: Mapping[str, Part]) -> tuple[int | None, str]:
    """How many parameters are trained, and which; or why that is not known."""
    own: AdapterSpec = spec.model.spec
    networks = {name: part for name, part in parts.items() if own.trains(name)}
    if isinstance(spec.tuning, Full):
        return sum(part.parameters for part in networks.values()), f"all of {', '.join(networks)}"
    if vague := [name for name, part in networks.items() if part.unknown]:
        return None, f"what is at hand of {', '.join(vague)} does not say how large its layers are"
    if spec.tuning.from_ is not None:
        return _begun_with(spec.tuning.from_)
    rank, targets = spec.tuning.rank or 0, spec.tuning.targets or own.targets
    adapted = [shape for part in networks.values() for shape in part.adapted(targets)]
    which = f"{len(adapted)} layers of {', '.join(networks)}" + ("" if targets else ", all linear ones of attention")
    return sum(rank * (rows + columns) for rows, columns in adapted), f"LoRA of rank {rank} on {which}"


def _sets(spec: Spec) -> list[str]:
    needs = spec.trainer.spec.needs
    apart = isinstance(spec.tuning, Full) or (spec.tuning.from_ is not None and spec.tuning.reference != "base")
    copied = ["reference"] if needs.reference and apart else []
    return [*(["ema"] if spec.optimizer.ema else []), *sorted(needs.sets), *needs.roles, *copied]


# --- read from elsewhere: counted ----------------------------------------------------------------------------------


def _begun_with(location: str) -> tuple[int | None, str]:
    """How many parameters the LoRA at a location has, and in words; `None` where nobody can know yet."""
    found = holdings.find(location)
    if found is None:
        return None, f"{location} {UNKNOWN}"
    return found.parameters, f"LoRA of rank {' and '.join(map(str, sorted(found.ranks)))}, as in `from`"


def _loaded(spec: Spec, network: int) -> tuple[int | None, str]:
    """How many parameters the trainer's loaded sets have together, and which they are; `None` as above.

    Beside full fine-tuning LoRA is added to a copy of the networks, which such sets share.

    Args:
        network: parameters of the trained networks.
    """
    sets, full = spec.trainer.spec.needs.loaded, isinstance(spec.tuning, Full)
    found = {location: holdings.find(location) for location in sets.values()}
    total = 0
    for location, held in found.items():
        if held is None:
            return None, f"{location} {UNKNOWN}"
        total += held.parameters if held.kind == "lora" else network
    copied = full and any(held is not None and held.kind == "lora" for held in found.values())
    return total + (network if copied else 0), ", ".join(sets)


# --- together ------------------------------------------------------------------------------------------------------


def _phases(spec: Spec, parts: Mapping[str, Part], needs: tuple[Need, ...]) -> Iterator[Need]:
    sizes = {need.name: need.bytes for need in needs if need.bytes is not None}
    vae = ["vae"] if spec.memory.encode == "before" else ["vae", "encoders"]
    kept = [*vae] if "vae" not in spec.memory.offload else []
    kept += ["trajectories"] if "trajectories" not in spec.memory.offload else []
    always = ["frozen", "trained", *([] if _rests(spec) else ["moments"]), "sets"]
    always += ["loaded"] if spec.trainer.spec.needs.loaded else []
    merged = ["merged"] if spec.sampling.merged else []
    looks = ["looks"] if spec.trainer.spec.needs.looks != "none" else []
    networks = [part for name, part in parts.items() if "transformer" in name]
    loaded = sum(frozen_bytes(part, BYTES[spec.run.precision], _kind(spec)) for part in networks)
    loaded = sizes["frozen"] if "weights" in spec.memory.offload else loaded
    coding = ["encoding"] if "encoding" in sizes else []
    encode = sum(sizes[name] for name in ("encoders", "vae", *coding)) + loaded
    yield Need("encode", encode, " + ".join(["encoders + vae + networks", *coding]) + "; once for all prompts")
    decoding = [*always, *(name for name in kept if name not in vae), *vae]
    gradient = spec.trainer.spec.needs.gradient
    training = decoding if gradient else [*always, *kept]
    known = "the rewards compute" if "decoding" in sizes else "the VAE and the rewards compute"
    for phase, names, more in (
        ("sample", [*always, *kept, "copies", *looks, *merged, "sampling_activations"], ""),
        ("decode", [*decoding, "decoding"], f"; what {known} with is not in it"),
        (
            "update",
            [*training, "gradients", "copies", "update_activations"],
            "; what the VAE and the rewards compute with is not in it" if gradient else "",
        ),
    ):
        there = [name for name in names if name in sizes]
        yield Need(phase, sum(sizes[name] for name in there), " + ".join(there) + more)


def _rests(spec: Spec) -> bool:
    """Whether the optimizer's state is in main memory."""
    return "optimizer" in spec.memory.offload


def _kind(spec: Spec) -> str | None:
    return spec.model.spec.quantize if isinstance(spec.model.spec, PipelineSpec) else None
