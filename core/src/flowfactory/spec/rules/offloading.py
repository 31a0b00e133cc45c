"""Rules of what is in main memory while it is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.specs import AdapterSpec
from flowfactory.errors import Problem
from flowfactory.spec.rules.rule import Rule, Where
from flowfactory.spec.tables import Component, Full


def _full(where: Where, offload: Sequence[str], _: Full) -> Iterator[Problem]:
    if "weights" in offload:
        why = "it trains every weight, and only frozen ones can be streamed"
        yield _apart(where, "weights", "[full]", why, "leave it out, train [lora], or divide weights by [memory] shard")


def _bits(where: Where, offload: Sequence[str], model: AdapterSpec) -> Iterator[Problem]:
    if "weights" in offload and isinstance(model, PipelineSpec) and model.quantize:
        why = f"bitsandbytes keeps weights in {model.quantize} on the device from each pass to its backward pass"
        yield _apart(where, "weights", "[model] quantize", why, "leave out one of them")


def _compiled(where: Where, offload: Sequence[str], compiled: bool) -> Iterator[Problem]:
    if "weights" in offload and compiled:
        why = "compiled blocks expect their weights where they were at compilation"
        yield _apart(where, "weights", "[memory] compile", why, "leave out one of them")


def _merged(where: Where, offload: Sequence[str], merged: bool) -> Iterator[Problem]:
    if "weights" in offload and merged:
        why = "it computes each adapted weight again, and only weights as read are streamed"
        yield _apart(where, "weights", "[sampling] merged", why, "leave out one of them")


def _shard(where: Where, offload: Sequence[str], shard: bool) -> Iterator[Problem]:
    whys = {
        "weights": "FSDP2 keeps all that it divides in main memory, trained weights and their steps too, or none",
        "optimizer": "its state is divided with the weights, and is where they are",
    }
    for name, why in whys.items():
        if name in offload and shard:
            yield _apart(where, name, "[memory] shard", why, "leave out one of them")


def _adapter(where: Where, offload: Sequence[str], model: Component) -> Iterator[Problem]:
    if "weights" in offload and not isinstance(model.spec, PipelineSpec):
        why = "it drives no pipeline of diffusers, whose networks have blocks to be streamed"
        yield _apart(where, "weights", f"[model] `{model.name}`", why, "leave it out")


def _apart(where: Where, name: str, other: str, why: str, hint: str) -> Problem:
    what = f'[memory] offload = ["{name}"] does not go together with {other}: {why}'
    return Problem("offload", what, where("memory", "offload"), hint)


RULES: tuple[Rule, ...] = (
    (("memory.offload", "full"), _full),
    (("memory.offload", "model.spec"), _bits),
    (("memory.offload", "memory.compile"), _compiled),
    (("memory.offload", "sampling.merged"), _merged),
    (("memory.offload", "memory.shard"), _shard),
    (("memory.offload", "model"), _adapter),
)
