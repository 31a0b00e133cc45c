"""What passes through a model at work, in bytes: conditions, trajectories, activations. Imports no torch.

Activations are estimated: for its backward pass a transformer keeps a number of values for each token and each unit of
its width in each layer, which is much the same from one architecture to the next (`KEPT`). With gradient checkpointing
it keeps one of them in each layer, and all in one. Or they were measured, on networks of the real sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import attrs

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Precision
from flowfactory.contracts.specs import StochasticSpec
from flowfactory.data.rows import DataError, load
from flowfactory.plan.checkpoint import BLOCK, Part
from flowfactory.plan.counts import rows_drawn
from flowfactory.plan.geometry import Geometry, decoded, geometry
from flowfactory.spec import window
from flowfactory.spec.rules.teams import teams_of
from flowfactory.spec.tables import Full, Spec
from flowfactory.spec.window import Growth

BYTES: Mapping[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

KEPT = {"lora": 18, "full": 25}
"""Values a layer keeps. Counted at the sizes of FLUX.1-dev, Qwen-Image, Wan 2.1 14B and SD3 medium, in bf16 and in
float32: 12 to 25 with LoRA on the layers they adapt by default, 21 to 34 where every weight is trained."""

ALIGNED = 256
"""Bytes at whose multiples the tensors of a streamed block begin."""

WORKING = ("conditions", "trajectories", "sampling_activations", "update_activations")


@attrs.frozen
class Need:
    """So many bytes, and how they come about; `None` where nobody can know yet."""

    name: str
    bytes: int | None
    reason: str


@attrs.frozen
class Measured:
    """What one sample takes, guidance included, in bytes but for `elements`.

    elements: numbers of its latent. conditions: of its prompt. layer: what the largest layer keeps for a backward pass.
    kept: what all do. recomputed: what all do with gradient checkpointing, the largest at work among them.
    """

    elements: int
    conditions: int
    layer: int
    kept: int
    recomputed: int
    encoding: int | None = None
    decoding: int | None = None


def frozen_bytes(part: Part, size: int, kind: str | None, share: int = 1) -> int:
    """Bytes of a network that is not trained, its numbers divided among `share` processes: scales are not."""
    numbers, scales = frozen_parts(part, size, kind)
    return numbers // share + scales


def frozen_parts(part: Part, size: int, kind: str | None) -> tuple[int, int]:
    """Bytes of the numbers of a network that is not trained, and of the scales beside them.

    A number has `size` bytes, or fewer bits in the linear layers of blocks. There int8 has a float32 for each row, nf4
    an 8-bit scale for every 64.
    """
    if kind is None:
        return part.bytes(size), 0
    layers = part.linear(inside_blocks=True).values()
    inside, rows = sum(rows * columns for rows, columns in layers), sum(rows for rows, _ in layers)
    outside = (part.parameters - inside) * size
    return (outside + inside, 4 * rows) if kind == "int8" else (outside + inside // 2, inside // 64)


def streamed(parts: Mapping[str, Part], size: int) -> Iterator[Need]:
    """Networks whose blocks are in main memory: what is on the device, and what is streamed there."""
    blocks: dict[str, dict[str, int]] = {name: {} for name in parts}
    for name, part in parts.items():
        for weight, shape in part.shapes.items():
            if found := BLOCK.match(weight):
                room = -(-math.prod(shape) * size // ALIGNED) * ALIGNED
                blocks[name][found[0]] = blocks[name].get(found[0], 0) + room
    outside = sum(math.prod(s) * size for p in parts.values() for name, s in p.shapes.items() if not BLOCK.match(name))
    two = sum(sum(sorted(sizes.values())[-2:]) for sizes in blocks.values())
    number, total = sum(map(len, blocks.values())), sum(sum(sizes.values()) for sizes in blocks.values())
    yield Need("frozen", outside + two, "what is in no block, and two blocks: one that computes, one that comes")
    why = f"{number} blocks in main memory, pinned; copied to the device in each pass, once more in a backward pass"
    yield Need("streamed", total, why)


def working(spec: Spec, parts: Mapping[str, Part], world: int, measured: Measured | None = None) -> Iterator[Need]:
    """All that passes through the networks of one of `world` processes."""
    teams = teams_of(world, spec.memory)
    share = world // teams
    yield from _decoding(spec, parts, measured, teams)
    if measured:
        yield from _conditions(spec, measured.conditions, f"{count_of(measured.conditions)} bytes, as measured")
        yield _trajectories(spec, measured.elements, teams)
        yield from _looks(spec, measured.elements, teams)
        yield from _measured(spec, measured, teams, share)
        return
    try:
        at = geometry(spec.model.spec, spec.sampling.size, parts)
    except (KeyError, ValueError) as error:
        why = f"unknown: the configs do not say {error}; `--exact` measures it"
        yield from (Need(name, None, why) for name in WORKING)
        return
    size = BYTES[spec.run.precision]
    yield from _conditions(spec, at.caption * size, f"{count_of(at.caption)} numbers x {size} bytes")
    yield _trajectories(spec, at.elements, teams)
    yield from _looks(spec, at.elements, teams)
    yield from _estimated(spec, at, teams, share)


def _decoding(spec: Spec, parts: Mapping[str, Part], measured: Measured | None, teams: int) -> Iterator[Need]:
    """What the VAE and what encodes compute with, weights aside."""
    if measured and measured.encoding is not None:
        yield Need("encoding", measured.encoding, "measured: of one prompt and its images, at once")
    count = _batches(spec, teams)[0]
    if measured and measured.decoding is not None:
        why = f"measured: {count} x {count_of(measured.decoding)} bytes at once"
        yield Need("decoding", count * measured.decoding, why)
        return
    try:
        each, size = decoded(parts["vae"].config, spec.sampling.size), BYTES[spec.run.precision]
    except (KeyError, ValueError) as error:
        yield Need("decoding", None, f"unknown: the configs do not say {error}; `--exact` measures it")
        return
    why = f"estimated: {count} x {count_of(each)} numbers x {size} bytes at once"
    yield Need("decoding", count * each * size, f"{why}; what cuDNN takes for convolutions is not in it")


def _conditions(spec: Spec, each: int, how: str) -> Iterator[Need]:
    """Of the rows that the run may draw, and of those that evaluations hold out, if there are any."""
    try:
        used, rows = rows_drawn(spec)
        held_out = [file for source in spec.data.sources if (file := source.eval_prompts) and spec.eval.every]
        kept = sum(len(load(file)) for file in held_out)
        which = f"{used} of {rows} rows, which the run may draw, and {kept} held out"
        yield Need("conditions", (used + kept) * each, f"on the disk, about: {which}, x {how}")
    except DataError as error:
        yield Need("conditions", None, f"unknown: prompts cannot be read: {error}")


def _trajectories(spec: Spec, elements: int, teams: int) -> Need:
    samples, kept, size = _samples(spec, teams), _positions(spec), BYTES[spec.sampling.storage]
    rows = f"{samples} samples x {kept} latents"
    if growth := _growth(spec):
        kept = 2 * len(growth.steps)
        rows = f"{samples} starts x {len(growth.steps)} branches x 2 latents"
    why, steps = f"{rows} x {count_of(elements)} numbers x {size} bytes", 0
    if keeps_means(spec):
        steps = len(growth.steps) if growth else _stochastic(spec)
        why += f", and {steps} old means of 4 bytes a number"
    return Need("trajectories", samples * elements * (kept * size + steps * 4), why)


def keeps_means(spec: Spec) -> bool:
    """Whether the means of stochastic steps are kept from sampling: updates ask that do not begin with its weights."""
    needs = spec.trainer.spec.needs
    return needs.old == "means" and (spec.optimizer.updates > 1 or needs.rollout != "current")


def _looks(spec: Spec, elements: int, teams: int) -> Iterator[Need]:
    kind = spec.trainer.spec.needs.looks
    if kind != "none":
        looks = len(window.looked_at(kind, window.earliest(spec.scheduler.spec, spec.sampling.steps)))
        sampled, size = _batches(spec, teams)[0], 4 if kind == "estimated" else BYTES[spec.sampling.storage]
        why = f"{sampled} samples x {looks} states on the way x {count_of(elements)} numbers x {size} bytes"
        yield Need("looks", sampled * looks * elements * size, why)


def _measured(spec: Spec, measured: Measured, teams: int, share: int) -> Iterator[Need]:
    sampled, updated = _batches(spec, teams)
    divided = f" / {share} processes of a team" if share > 1 else ""
    why = f"measured: {sampled} x {count_of(measured.layer)} bytes{divided}, of the largest layer"
    yield Need("sampling_activations", sampled * measured.layer // share, why)
    each, how = measured.kept, "that autograd keeps"
    if spec.memory.gradient_checkpointing:
        each, how = measured.recomputed, "of what goes into each layer, and all of the largest"
    if (chained := _chained(spec)) > 1:
        how += f" x {chained} steps"
    total = updated * each * chained // share
    yield Need("update_activations", total, f"measured: {updated} x {count_of(each)} bytes{divided} {how}")


def _estimated(spec: Spec, at: Geometry, teams: int, share: int) -> Iterator[Need]:
    size, calls = BYTES[spec.run.precision], 2 if _twice(spec, at) else 1
    kind = "full" if isinstance(spec.tuning, Full) else "lora"
    per_token, tokens = at.width * KEPT[kind], -(-at.tokens // share)
    told = f"{at.tokens} tokens" + (f" / {share} processes of a team" if share > 1 else "")
    sampled, updated = (batch * calls for batch in _batches(spec, teams))
    why = f"estimated: {sampled} x {told} x width {at.width} x {KEPT[kind]} x {size} bytes"
    yield Need("sampling_activations", sampled * tokens * per_token * size, f"{why}, of one layer")
    why = f"estimated: {updated} x {told} x width {at.width}"
    chained = _chained(spec)
    layers = f"{at.layers} layers" + (f" x {chained} steps" if chained > 1 else "")
    if spec.memory.gradient_checkpointing:
        values = at.width * (at.layers * chained + KEPT[kind])
        why += f" x ({layers}, and {KEPT[kind]} in one of them) x {size} bytes"
    else:
        values = per_token * at.layers * chained
        why += f" x {layers} x {KEPT[kind]} x {size} bytes"
    yield Need("update_activations", updated * tokens * values * size, why)


def _chained(spec: Spec) -> int:
    """How many velocities, one after the other, a gradient goes back through."""
    return max(1, int(spec.scheduler.spec.calls(min(spec.trainer.spec.needs.gradient, spec.sampling.steps))))


def _samples(spec: Spec, teams: int) -> int:
    return spec.sampling.prompts * spec.group // teams


def _batches(spec: Spec, teams: int) -> tuple[int, int]:
    """How many samples pass the networks together: in sampling, and in an update."""
    samples, growth = _samples(spec, teams), _growth(spec)
    ends, rows = (len(growth.leaves), len(growth.steps)) if growth else (1, 1)
    learned = samples * rows // spec.optimizer.updates
    return min(spec.sampling.micro_batch, samples * ends), min(spec.optimizer.micro_batch, learned)


def _growth(spec: Spec) -> Growth | None:
    return window.largest(spec.trainer.spec.needs.branches, spec.scheduler.spec, spec.sampling.steps)


def _positions(spec: Spec) -> int:
    """How many latents of a trajectory are stored: see `Needs.trajectory`."""
    scheduler, wanted = spec.scheduler.spec, spec.trainer.spec.needs.trajectory
    if wanted == "states":
        return spec.sampling.steps + 1
    if wanted == "final" or not isinstance(scheduler, StochasticSpec):
        return 1
    steps = window.stochastic_steps(scheduler.window, spec.sampling.steps, spec.run.seed, 1)
    return len({*steps, *(step + 1 for step in steps), spec.sampling.steps})


def _stochastic(spec: Spec) -> int:
    """How many steps of a trajectory are stochastic."""
    scheduler = spec.scheduler.spec
    if not isinstance(scheduler, StochasticSpec):
        return 0
    return len(window.stochastic_steps(scheduler.window, spec.sampling.steps, spec.run.seed, 1))


def _twice(spec: Spec, at: Geometry) -> bool:
    """Whether positive and negative prompts pass the network."""
    own = spec.model.spec
    if isinstance(own, PipelineSpec) and own.true_cfg > 1:
        return True
    return spec.sampling.guidance > 1 and not at.embeds_guidance


def count_of(number: int) -> str:
    """A number in a few characters."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return str(number)


def readable(number: float | None) -> str:
    """Bytes as a person reads them."""
    if number is None:
        return "unknown"
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} B"
