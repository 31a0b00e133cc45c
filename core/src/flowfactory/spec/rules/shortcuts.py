"""Rules of what makes sampling faster, and its samples not quite those of the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.specs import AdapterSpec, Needs
from flowfactory.errors import Problem
from flowfactory.spec.rules.rule import Rule, Where
from flowfactory.spec.tables import Full


def _merged_probabilities(where: Where, trainer: str, needs: Needs, merged: bool) -> Iterator[Problem]:
    if merged and needs.trajectory == "steps" and needs.density != "none" and needs.old != "replayed":
        what = f"trainer `{trainer}` compares probabilities with those of sampling, and merged LoRA rounds differently"
        hint = 'set [sampling] merged to false, or [trainer] old to "replayed" if it has that key'
        yield Problem("merged", what, where("sampling", "merged"), hint)


def _merged_full(where: Where, merged: bool, _: Full) -> Iterator[Problem]:
    if merged:
        what = "[full] trains every weight, so there is no LoRA to merge"
        yield Problem("merged", what, where("sampling", "merged"), "leave it out")


def _merged_bits(where: Where, merged: bool, model: AdapterSpec) -> Iterator[Problem]:
    if merged and isinstance(model, PipelineSpec) and model.quantize:
        what = f"LoRA cannot be added to weights in {model.quantize} without rounding it away"
        yield Problem("merged", what, where("sampling", "merged"), "set it to false, or leave out [model] quantize")


def _cached_probabilities(where: Where, trainer: str, needs: Needs, cache: float | None) -> Iterator[Problem]:
    if cache is not None and needs.trajectory == "steps" and needs.density != "none":
        what = f"trainer `{trainer}` needs the probabilities of its steps, and skipped blocks change them"
        yield Problem("first-block-cache", what, where("sampling", "first_block_cache"), "leave it out")


def _cached_apart(where: Where, cache: float | None, shard: bool, compiled: bool) -> Iterator[Problem]:
    for key, on, why in (
        ("shard", shard, "processes would skip different blocks, which they have to put together at the same time"),
        ("compile", compiled, "blocks would be compiled anew for each micro-batch"),
    ):
        if cache is not None and on:
            what = f"[sampling] first_block_cache does not go together with [memory] {key}: {why}"
            yield Problem("first-block-cache", what, where("sampling", "first_block_cache"), "leave out one of them")


NEEDS = ("trainer.name", "trainer.spec.needs")
RULES: tuple[Rule, ...] = (
    ((*NEEDS, "sampling.merged"), _merged_probabilities),
    (("sampling.merged", "full"), _merged_full),
    (("sampling.merged", "model.spec"), _merged_bits),
    ((*NEEDS, "sampling.first_block_cache"), _cached_probabilities),
    (("sampling.first_block_cache", "memory.shard", "memory.compile"), _cached_apart),
)
