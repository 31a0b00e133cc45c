"""What processes send each other in an optimizer step, and whether each has enough to do. Imports no torch.

It counts the messages of `distributed` and `sharding` before anything is loaded. Single numbers, which processes agree
by, are left out. Messages travel in rings: of what is gathered or scattered, a process sends all but its own part; of
sums it sends that twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import attrs

from flowfactory.builtin import PipelineSpec
from flowfactory.errors import DONE, Problem
from flowfactory.plan import estimate
from flowfactory.plan.checkpoint import Part
from flowfactory.plan.geometry import geometry
from flowfactory.plan.plan import Plan
from flowfactory.plan.working import BYTES, Need, count_of, frozen_parts, readable
from flowfactory.spec import window
from flowfactory.spec.rules.teams import teams_of, together
from flowfactory.spec.tables import Full, Spec

UNITS: Mapping[str, float] = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BANDWIDTH = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<scale>[kMGT]?)(?P<unit>B|bit)/s")

SCORED = 9
"""Bytes of one score: a float64, and whether it failed."""
NUMBERED = 8
"""Bytes of the number of a sample."""

ENOUGH = 0.8
"""Share of its micro-batches that a process should fill."""


def bandwidth(text: str) -> float:
    """Bytes a second.

    Raises:
        ValueError: the text says something else.
    """
    found = _BANDWIDTH.fullmatch(text)
    value = float(found["number"]) * UNITS[found["scale"]] / (8 if found["unit"] == "bit" else 1) if found else 0.0
    if not value:
        raise ValueError(f"expected bytes or bits a second, as in 50GB/s or 400Gbit/s, not {text!r}")
    return value


@attrs.frozen
class Traffic:
    """What one of several processes sends in a step of the optimizer, and the time of it.

    sent: by kind of message. bandwidth: bytes a second that it sends. samples: that it trains on in a step.
    rate: samples a second of one process by itself, sampled and trained; `None`: nobody has said.
    """

    sent: tuple[Need, ...]
    bandwidth: float
    samples: int
    rate: float | None = None

    @property
    def total(self) -> int | None:
        """Bytes; `None` where those of some messages are not known."""
        sizes = [need.bytes for need in self.sent if need.bytes is not None]
        return sum(sizes) if len(sizes) == len(self.sent) else None

    @property
    def seconds(self) -> float | None:
        """How long sending takes."""
        return None if self.total is None else self.total / self.bandwidth

    @property
    def share(self) -> float | None:
        """Of a step; `None` where its time is not known."""
        if self.seconds is None or self.rate is None:
            return None
        return self.seconds / (self.seconds + self.samples / self.rate)

    def as_json(self) -> dict[str, Any]:
        """Everything, with what follows from it."""
        return attrs.asdict(self) | {"total": self.total, "seconds": self.seconds, "share": self.share}

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: message, bytes or time, reason."""
        rows = [(need.name, readable(need.bytes), need.reason) for need in self.sent]
        rows.append(("total", readable(self.total), "sent by each process in a step, and received by it"))
        if self.seconds is not None:
            how = f"at {count_of(round(self.bandwidth))}B/s, as --bandwidth says; no delay of single messages is in it"
            rows.append(("seconds", f"{self.seconds:.3g}", how))
        if self.share is not None and self.rate is not None:
            alone = f"{self.samples} samples / {self.rate:g} a second, as --rate says, in full micro-batches"
            rows.append(("share", f"{100 * self.share:.2g} %", f"of the step, which is {alone}, and sending after it"))
        return rows


def traffic(
    plan: Plan, bandwidth: float, rate: float | None = None, known: Mapping[str, Part] | None = None
) -> Traffic | None:
    """What a process sends; nothing where there is only one.

    Args:
        known: as `estimate` takes it.

    Raises:
        SpecError: the model's files cannot be read.
    """
    if plan.world == 1:
        return None
    parts = estimate.models(plan.spec, known or {})
    sent = [*_divided(plan, parts)] if plan.spec.memory.shard else [_gradients(plan, parts)]
    if teams_of(plan.world, plan.spec.memory) < plan.world:
        sent.append(_exchanged(plan, parts))
    return Traffic((*sent, _scores(plan)), bandwidth, plan["samples_per_update_per_process"], rate)


def _gradients(plan: Plan, parts: Mapping[str, Part]) -> Need:
    """Of all trained weights in one message, with a number for each tensor that says whether it has a gradient."""
    spec, turns = plan.spec, 1 + sum(role.steps for role in plan.spec.trainer.spec.needs.roles.values())
    count, how = estimate.trained(spec, parts)
    if count is None or not parts:
        return Need("gradients", None, f"unknown: {how if parts else estimate.UNCOUNTED}")
    tensors = _tensors(spec, parts)
    message = (count + tensors) * 4
    why = f"summed: {count_of(count)} parameters and {count_of(tensors)} flags x 4 bytes"
    why += f" x {turns} turns" if turns > 1 else ""
    return Need("gradients", _around(2 * message * turns, plan.world), why)


def _tensors(spec: Spec, parts: Mapping[str, Part]) -> int:
    """How many tensors are trained; as many as LoRA adapts on its own, where it begins with another."""
    networks = [part for name, part in parts.items() if spec.model.spec.trains(name)]
    if isinstance(spec.tuning, Full):
        return sum(len(part.shapes) + len(part.packed) for part in networks)
    targets = spec.tuning.targets or spec.model.spec.targets
    return 2 * sum(len(part.adapted(targets)) for part in networks)


def _scores(plan: Plan) -> Need:
    """Of all samples, and of their states that are scored; media stay where they were made."""
    spec, each = plan.spec, NUMBERED + SCORED * len(plan.spec.rewards)
    if not (spec.rewards and spec.trainer.spec.needs.scores and spec.trainer.spec.needs.source == "rollouts"):
        return Need("scores", 0, "nothing is scored")
    numbers = {number.name: number.value for number in plan.numbers}
    scored = (numbers["samples"] + numbers.get("looks", 0)) // spec.optimizer.updates
    how = f"gathered: of {scored} that are scored, {each} bytes each; media stay where they were made"
    size = plan.world // teams_of(plan.world, spec.memory)
    return Need("scores", _around(scored * each * size, plan.world), how)


def _divided(plan: Plan, parts: Mapping[str, Part]) -> Iterator[Need]:
    """Of divided networks: put together for every pass, twice for one with a gradient, whose gradients are summed."""
    spec, world = plan.spec, plan.world
    networks = [part for name, part in parts.items() if spec.model.spec.trains(name)]
    (count, how), calls = estimate.trained(spec, parts), _calls(plan)
    if count is None or calls is None or not networks:
        why = how if networks else estimate.UNCOUNTED
        if calls is None:
            why = f"trainer `{spec.trainer.name}` does not say how often it asks the network"
        yield from (Need(name, None, f"unknown: {why}") for name in ("weights", "gradients"))
        return
    size, own = BYTES[spec.run.precision], spec.model.spec
    kind = own.quantize if isinstance(own, PipelineSpec) else None
    base = 0 if isinstance(spec.tuning, Full) else sum(frozen_parts(part, size, kind)[0] for part in networks)
    whole, (without, trained) = (base + count * 4) / len(networks), calls
    why = f"{readable(whole)} put together in {without:.4g} calls without a gradient, and twice in"
    why += f" {trained:.4g} with one; guidance by calls of its own doubles that"
    yield Need("weights", _around(whole * (without + 2 * trained), world), why)
    why = f"summed as they are divided: {count_of(count)} parameters x 4 bytes in {trained:.4g} calls"
    yield Need("gradients", _around(count * 4 / len(networks) * trained, world), why)


def _exchanged(plan: Plan, parts: Mapping[str, Part]) -> Need:
    """Of what the attention of each layer is given, and gives. Tokens for heads and back: three tensors and one, and so
    their gradients. In a ring: keys and values of all, again for their gradients, and these in float32."""
    spec, memory, names = plan.spec, plan.spec.memory, {number.name: number.value for number in plan.numbers}
    try:
        at = geometry(spec.model.spec, spec.sampling.size, parts)
    except (StopIteration, KeyError, ValueError):
        return Need("tokens", None, "unknown: the model's configs cannot be read")
    if "trained_passes" not in names:
        why = f"unknown: trainer `{spec.trainer.name}` does not say how often it asks the network"
        return Need("tokens", None, why)
    shared = names["teams"] * spec.optimizer.updates
    forward, trained = names["forward_passes"] / shared, names["trained_passes"] / shared
    one = at.layers * at.tokens // together(memory) * at.width
    heads = _around(4 * one * BYTES[spec.run.precision], memory.ulysses)
    there = heads + 2 * one * BYTES[spec.run.precision] * (memory.ring - 1)
    back = there + (2 * one * 4 * memory.ring if memory.ring > 1 else 0)
    again = trained if memory.gradient_checkpointing else 0
    why = f"{readable(there)} in each of {forward + trained + again:.4g} passes of a sample, and"
    why += f" {readable(back)} in {trained:.4g} with a gradient; guidance by calls of its own doubles that"
    return Need("tokens", round(there * (forward + trained + again) + back * trained), why)


def _calls(plan: Plan) -> tuple[float, float] | None:
    """How often a process calls its network in a step, without and with a gradient; about, where losses are groups'."""
    spec, own = plan.spec, plan.spec.trainer.spec
    scheduler, steps, updates = spec.scheduler.spec, spec.sampling.steps, spec.optimizer.updates
    turns = {**{name: role.steps for name, role in own.needs.roles.items()}, "current": 1}
    reach = scheduler.calls(min(own.needs.gradient, steps))
    learned = 1 if own.needs.branches else len(window.earliest(scheduler, steps))
    without, trained = plan["sampling_calls"] / updates, 0.0
    for update, (role, times) in product(range(updates), turns.items()):
        asked = (0, spec.group * reach) if reach else own.passes(role, update, spec.group, learned, steps)
        if asked is None:
            return None
        each = plan["accumulation"] * times / updates
        without, trained = without + each * asked[0] / spec.group, trained + each * asked[1] / spec.group
    return without, trained


def _around(message: float, world: int) -> int:
    """What a process sends of a message that goes round all: all but its own part."""
    return round(message * (world - 1) / world)


# --- enough to do --------------------------------------------------------------------------------------------------


def starved(plan: Plan) -> Iterator[Problem]:
    """Where a process has so few samples that its micro-batches are not full, as one process would have them."""
    spec, names = plan.spec, {number.name: number.value for number in plan.numbers}
    for table, size, own, whole in (
        ("sampling", spec.sampling.micro_batch, names["samples_per_process"], names["samples"]),
        ("optimizer", spec.optimizer.micro_batch, names["samples_per_update_per_process"], names["effective_batch"]),
    ):
        if (full := _filled(own, size)) < ENOUGH and full < _filled(whole, size):
            what = f"each of {plan.world} processes has {own} samples, which fill its micro-batches of {size} to"
            other = "raise [sampling] prompts or group, or use fewer processes"
            hint = f"set [{table}] micro_batch to {_fitting(own, size)}, {other}"
            yield Problem("starved", f"[{table}] {what} {100 * full:.0f} %", None, hint, DONE)


def _filled(samples: int, size: int) -> float:
    return samples / (math.ceil(samples / size) * size)


def _fitting(samples: int, size: int) -> int:
    """The largest micro-batch up to `size` that a number of samples fills evenly."""
    return -(-samples // math.ceil(samples / size))
