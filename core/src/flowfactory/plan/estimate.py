"""What a run will need in memory, before anything is loaded: from the spec and the headers of the checkpoint.

Weights are counted. Activations are estimated: for its backward pass a transformer keeps a number of values for each
token and each unit of its width in each layer, which is much the same from one architecture to the next (`KEPT`). With
gradient checkpointing it keeps one of them in each layer, and all in one. Imports no torch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Precision
from flowfactory.contracts.specs import AdapterSpec, StochasticSpec
from flowfactory.plan import headers
from flowfactory.plan.headers import Part
from flowfactory.spec import window
from flowfactory.spec.tables import Full, Spec

BYTES: Mapping[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

KEPT = {"lora": 18, "full": 25}
"""Values a layer keeps. Counted at the sizes of FLUX.1-dev, Qwen-Image, Wan 2.1 14B and SD3 medium, in bf16 and in
float32: 12 to 25 with LoRA on the layers they adapt by default, 21 to 34 where every weight is trained."""

WORKING = ("conditions", "trajectories", "sampling_activations", "update_activations")

TEXT = 512
"""Text tokens of a prompt, where the spec does not say."""


@attrs.frozen
class Need:
    """So many bytes, and how they come about; `None` where nobody can know yet."""

    name: str
    bytes: int | None
    reason: str


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


@attrs.frozen
class Geometry:
    """Sizes of a transformer at work.

    tokens: of one sample; text's among them where it passes through the same layers. elements: of one latent.
    caption: numbers a prompt is encoded to.
    """

    layers: int
    width: int
    tokens: int
    elements: int
    caption: int
    embeds_guidance: bool


def estimate(spec: Spec, world: int = 1) -> Estimate:
    """What each of `world` processes needs."""
    own: AdapterSpec = spec.model.spec
    found = headers.on_disk(own.path, own.revision)
    parts = {} if found is None else headers.read(found)
    if not any(own.trains(name) for name in parts):
        why = "is not on this disk: unknown until it is downloaded" if found is None else "has no weights to count"
        return Estimate((Need("weights", None, f"{own.path} {why}"),), ())
    needs = (*_weights(spec, parts, world if spec.memory.shard else 1), *_working(spec, parts, world))
    return Estimate(needs, tuple(_phases(spec, parts, needs)))


# --- weights: counted ----------------------------------------------------------------------------------------------


def _weights(spec: Spec, parts: Mapping[str, Part], share: int) -> Iterator[Need]:
    own, size, precision = spec.model.spec, BYTES[spec.run.precision], spec.run.precision
    divided = f" / {share} processes" if share > 1 else ""
    others = {name: part for name, part in parts.items() if not name.startswith("transformer")}
    encoders = {name: part.parameters for name, part in others.items() if not name.startswith("vae")}
    total = sum(encoders.values())
    why = f"{', '.join(encoders)}: {_count(total)} parameters x {size} bytes; gone once prompts are encoded"
    yield Need("encoders", total * size, why)
    total = sum(part.parameters for name, part in others.items() if name.startswith("vae"))
    yield Need("vae", total * size, f"{_count(total)} parameters x {size} bytes")
    full = isinstance(spec.tuning, Full)
    frozen = [p for name, p in parts.items() if name.startswith("transformer") and not (full and own.trains(name))]
    kind = _kind(spec)
    stored = sum(frozen_bytes(part, size, kind) for part in frozen) // share
    total = sum(part.parameters for part in frozen)
    yield Need("frozen", stored, f"{_count(total)} parameters of the networks in {kind or precision}{divided}")
    count, how = trained(spec, parts)
    yield Need("trained", count * 4 // share, f"{_count(count)} parameters x 4 bytes{divided}: {how}")
    yield Need("gradients", count * 4 // share, f"{_count(count)} x 4 bytes{divided}")
    moments = spec.optimizer.bits // 4
    yield Need("moments", count * moments // share, f"AdamW's two, of {spec.optimizer.bits} bits each{divided}")
    sets = _sets(spec)
    why = f"{len(sets)} further float32 sets{divided}" + (f": {', '.join(sets)}" if sets else "")
    yield Need("sets", count * 4 * len(sets) // share, why)
    copies = count * size if size < 4 else 0
    yield Need("copies", copies, f"trained weights in {precision}, which is computed in" if copies else "none in fp32")


def frozen_bytes(part: Part, size: int, kind: str | None) -> int:
    """Bytes of a network that is not trained: of `size` bytes a number, or its blocks' linear layers in fewer bits.

    Beside its numbers, int8 has a float32 for each row, nf4 an 8-bit scale for every 64.
    """
    if kind is None:
        return part.parameters * size
    layers = part.linear(inside_blocks=True).values()
    inside, rows = sum(rows * columns for rows, columns in layers), sum(rows for rows, _ in layers)
    return (part.parameters - inside) * size + (inside + 4 * rows if kind == "int8" else inside // 2 + inside // 64)


def trained(spec: Spec, parts: Mapping[str, Part]) -> tuple[int, str]:
    """How many parameters are trained, and which."""
    own: AdapterSpec = spec.model.spec
    networks = {name: part for name, part in parts.items() if own.trains(name)}
    if isinstance(spec.tuning, Full):
        return sum(part.parameters for part in networks.values()), f"all of {', '.join(networks)}"
    rank, targets = spec.tuning.rank, spec.tuning.targets or own.targets
    adapted = [shape for part in networks.values() for shape in part.adapted(targets)]
    which = f"{len(adapted)} layers of {', '.join(networks)}" + ("" if targets else ", all linear ones of attention")
    return sum(rank * (rows + columns) for rows, columns in adapted), f"LoRA of rank {rank} on {which}"


def _sets(spec: Spec) -> list[str]:
    needs = spec.trainer.spec.needs
    copied = ["reference"] if needs.reference and isinstance(spec.tuning, Full) else []
    return [*(["ema"] if spec.optimizer.ema else []), *sorted(needs.sets), *copied]


# --- what passes through: estimated --------------------------------------------------------------------------------


def _working(spec: Spec, parts: Mapping[str, Part], world: int) -> Iterator[Need]:
    try:
        at = geometry(spec, parts)
    except (KeyError, TypeError) as error:
        why = f"unknown: the configs do not say {error}"
        yield from (Need(name, None, why) for name in WORKING)
        return
    size, s = BYTES[spec.run.precision], spec.sampling
    prompts = sum(_prompts(Path(file)) for file in (spec.data.prompts, spec.data.eval_prompts) if file)
    why = f"on the disk: {prompts} prompts x {_count(at.caption)} numbers x {size} bytes"
    yield Need("conditions", prompts * at.caption * size, why)
    samples, kept = s.prompts * spec.group // world, _positions(spec)
    why = f"{samples} samples x {kept} latents x {_count(at.elements)} numbers x {BYTES[s.storage]} bytes"
    yield Need("trajectories", samples * kept * at.elements * BYTES[s.storage], why)
    calls = 2 if _twice(spec, at) else 1
    kind = "full" if isinstance(spec.tuning, Full) else "lora"
    per_token = at.width * KEPT[kind]
    batch = min(s.micro_batch, samples) * calls
    why = f"estimated: {batch} x {at.tokens} tokens x width {at.width} x {KEPT[kind]} x {size} bytes"
    yield Need("sampling_activations", batch * at.tokens * per_token * size, f"{why}, of one layer")
    batch = min(spec.optimizer.micro_batch, samples // spec.optimizer.updates) * calls
    why = f"estimated: {batch} x {at.tokens} tokens x width {at.width}"
    if spec.memory.gradient_checkpointing:
        values = at.width * (at.layers + KEPT[kind])
        why += f" x ({at.layers} layers, and {KEPT[kind]} in one of them) x {size} bytes"
    else:
        values = per_token * at.layers
        why += f" x {at.layers} layers x {KEPT[kind]} x {size} bytes"
    yield Need("update_activations", batch * at.tokens * values * size, why)


def geometry(spec: Spec, parts: Mapping[str, Part]) -> Geometry:
    """Sizes, as diffusers' configs name them.

    Raises:
        KeyError, TypeError: a config has no such name, or something else by it.
    """
    network = next(part.config for name, part in parts.items() if spec.model.spec.trains(name))
    vae, size, own = parts["vae"].config, spec.sampling.size, spec.model.spec
    halvings = vae.get("temperal_downsample") or vae["block_out_channels"][1:]
    scale = vae.get("scale_factor_spatial") or 2 ** len(halvings)
    slower = vae.get("scale_factor_temporal") or 2 ** sum(vae.get("temperal_downsample") or ())
    channels = vae.get("latent_channels") or vae["z_dim"]
    patch = network["patch_size"]
    time, *_, side = (1, patch) if isinstance(patch, int) else patch
    if network["in_channels"] == 4 * channels:
        side = 2  # the pipeline makes a token of four latent pixels before the network sees them
    frames = (size.frames - 1) // slower + 1
    pixels = frames * (size.height // scale) * (size.width // scale)
    text = (own.max_sequence_length if isinstance(own, PipelineSpec) else None) or TEXT
    return Geometry(
        layers=network["num_layers"] + network.get("num_single_layers", 0),
        width=network["num_attention_heads"] * network["attention_head_dim"],
        tokens=pixels // (time * side * side) + (text if "joint_attention_dim" in network else 0),
        elements=channels * pixels,
        caption=text * (network.get("joint_attention_dim") or network["text_dim"]),
        embeds_guidance=bool(network.get("guidance_embeds")),
    )


def _positions(spec: Spec) -> int:
    """How many latents of a trajectory are stored: both ends of each stochastic step, and the last."""
    scheduler = spec.scheduler.spec
    if spec.trainer.spec.needs.trajectory == "final" or not isinstance(scheduler, StochasticSpec):
        return 1
    steps = window.stochastic_steps(scheduler.window, spec.sampling.steps, spec.run.seed, 1)
    return len({*steps, *(step + 1 for step in steps), spec.sampling.steps})


def _twice(spec: Spec, at: Geometry) -> bool:
    """Whether positive and negative prompts pass the network."""
    own = spec.model.spec
    if isinstance(own, PipelineSpec) and own.true_cfg > 1:
        return True
    return spec.sampling.guidance > 1 and not at.embeds_guidance


def _prompts(file: Path) -> int:
    """About how many prompts a file has."""
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".csv":
            return max(0, sum(1 for row in csv.reader(lines) if row) - 1)
        return sum(1 for line in lines if line.strip())


# --- together ------------------------------------------------------------------------------------------------------


def _phases(spec: Spec, parts: Mapping[str, Part], needs: tuple[Need, ...]) -> Iterator[Need]:
    sizes = {need.name: need.bytes or 0 for need in needs}
    kept = ["vae"] if "vae" not in spec.memory.offload else []
    kept += ["trajectories"] if "trajectories" not in spec.memory.offload else []
    always = ["frozen", "trained", "moments", "sets"]
    networks = [part for name, part in parts.items() if name.startswith("transformer")]
    loaded = sum(frozen_bytes(part, BYTES[spec.run.precision], _kind(spec)) for part in networks)
    yield Need("encode", sizes["encoders"] + sizes["vae"] + loaded, "encoders + vae + networks; once for all prompts")
    decoding = [*always, *(name for name in kept if name != "vae"), "vae"]
    for phase, names, more in (
        ("sample", [*always, *kept, "copies", "sampling_activations"], ""),
        ("decode", decoding, "; what the VAE and the rewards compute with is not in it"),
        ("update", [*always, *kept, "gradients", "copies", "update_activations"], ""),
    ):
        yield Need(phase, sum(sizes[name] for name in names), " + ".join(names) + more)


def _kind(spec: Spec) -> str | None:
    return spec.model.spec.quantize if isinstance(spec.model.spec, PipelineSpec) else None


def _count(number: int) -> str:
    """A number in a few characters."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return str(number)


def readable(number: int | None) -> str:
    """Bytes as a person reads them."""
    if number is None:
        return "unknown"
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number} B"
