"""Rules of how weights move: what an epoch gives to each update, which weights there are, and how they are divided."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.specs import AdapterSpec, Needs, TrainerSpec
from flowfactory.errors import Problem, listed
from flowfactory.spec import holdings
from flowfactory.spec.kinds import keys
from flowfactory.spec.rules.rule import Rule, Where
from flowfactory.spec.rules.teams import nearest_divisors
from flowfactory.spec.tables import Component, Full, Sampling


def _updates(where: Where, prompts: int, updates: int) -> Iterator[Problem]:
    if prompts % updates:
        near = nearest_divisors(prompts, updates)
        what = f"[optimizer] updates = {updates} does not divide [sampling] prompts = {prompts} into whole groups"
        hint = f"the nearest that do are {', '.join(map(str, near))}"
        yield Problem("updates", what, where("optimizer", "updates"), hint)


def _warmup(where: Where, epochs: int, updates: int, warmup: int) -> Iterator[Problem]:
    total = epochs * updates
    if total and warmup >= total:
        made = f"{epochs} epochs x {updates} updates = {total} steps"
        what = f"the warm-up of {warmup} steps never ends: the run makes {made}"
        yield Problem("warmup", what, where("optimizer", "warmup"))


def _decay(where: Where, lr: float, decay: float) -> Iterator[Problem]:
    if lr * decay >= 1:
        what = f"each step removes lr x weight_decay = {lr * decay:g} times every weight, so nothing is left of it"
        yield Problem("weight-decay", what, where("optimizer", "weight_decay"), "1e-4 is usual; 0 turns it off")


def _group(where: Where, trainer: str, needs: Needs, group: int) -> Iterator[Problem]:
    if needs.source == "rollouts" and needs.scores and group < 2 and needs.branches is None:
        what = f"trainer `{trainer}` compares the samples of a prompt, and [sampling] group is {group}"
        yield Problem("group", what, where("sampling", "group"), "set it to 2 or more")
    if needs.source != "rollouts" and group != keys(Sampling)["group"].default:
        what = f"trainer `{trainer}` learns from the data, whose rows make the groups: [sampling] group has no use"
        yield Problem("group", what, where("sampling", "group"), "leave it out")


def _uncompared(where: Where, trainer: str, needs: Needs, value: str, key: str) -> Iterator[Problem]:
    if not needs.scores and value != keys(TrainerSpec)[key].default:
        what = f"trainer `{trainer}` compares no samples: `{key}` has no use"
        yield Problem("uncompared", what, where("trainer", key), "leave it out")


def _refill(where: Where, trainer: str, needs: Needs, refill: int) -> Iterator[Problem]:
    if refill and not (needs.source == "rollouts" and needs.scores):
        what = f"trainer `{trainer}` scores no samples, so there is nothing that [sampling] refill could replace"
        yield Problem("refill", what, where("sampling", "refill"), "leave it out")


# --- which weights -------------------------------------------------------------------------------------------------


def _quantize(where: Where, model: AdapterSpec, _: Full) -> Iterator[Problem]:
    """Weights in fewer bits cannot move."""
    if isinstance(model, PipelineSpec) and model.quantize:
        what = f"[full] trains every weight, and weights in {model.quantize} cannot be trained"
        yield Problem("quantize", what, where("model", "quantize"), "leave it out, or train [lora]")


def _role_names(where: Where, trainer: str, needs: Needs) -> Iterator[Problem]:
    taken = {"current", "reference", "ema", "default", "optimizer", "trainer", *needs.sets}
    for name, role in needs.roles.items():
        if not name.isidentifier() or name in taken or role.steps < 1:
            what = f"trainer `{trainer}`, role `{name}`: it has no steps, or its name is no word or already taken"
            yield Problem("role", what, where("trainer", "name"), "only its author can change that")


def _role_precision(where: Where, trainer: str, needs: Needs, precision: str) -> Iterator[Problem]:
    if needs.roles and precision == "fp16":
        what = f"trainer `{trainer}` trains {listed(needs.roles)} too, and fp16 scales the losses of one optimizer only"
        yield Problem("role", what, where("run", "precision"), 'set it to "bf16" or "fp32"')


# --- weights that do not lie in one piece --------------------------------------------------------------------------


def _shard_precision(where: Where, shard: bool, precision: str) -> Iterator[Problem]:
    if shard and precision == "fp16":
        yield _divided(where, '[run] precision = "fp16"')


def _shard_bits(where: Where, shard: bool, bits: int) -> Iterator[Problem]:
    if shard and bits != 32:
        yield _divided(where, f"[optimizer] bits = {bits}")


def _divided(where: Where, key: str) -> Problem:
    what = f"[memory] shard does not go together with {key}"
    return Problem("shard", what, where("memory", "shard"), "leave out one of them")


EVENLY = "with [memory] shard all processes have to make equally many calls of the network"
"""Processes call a divided network together, so each has to make as many calls, whatever its samples are."""


def _shard_adapter(where: Where, shard: bool, model: Component) -> Iterator[Problem]:
    if shard and model.spec.calls == "unknown":
        what = f"{EVENLY}, but adapter `{model.name}` does not say when it does"
        yield Problem("shard-calls", what, where("memory", "shard"), "set it to false; its author could set `calls`")


def _shard_batches(
    where: Where, shard: bool, model: Component, sampling: int, optimizer: int, evaluation: int | None
) -> Iterator[Problem]:
    batches = {"sampling": sampling, "optimizer": optimizer, "eval": evaluation or 1}
    if shard and model.spec.calls == "sample" and (large := [name for name, size in batches.items() if size > 1]):
        what = f"{EVENLY}, but those of adapter `{model.name}` depend on the samples of a micro-batch"
        hint = f"set micro_batch = 1 in {' and '.join(f'[{name}]' for name in large)}"
        yield Problem("shard-calls", what, where("memory", "shard"), hint)


def _shard_trainer(where: Where, shard: bool, trainer: Component) -> Iterator[Problem]:
    if shard and not trainer.spec.even_calls:
        what = f"{EVENLY}, but trainer `{trainer.name}` does not say that it does"
        hint = "set it to false; its author could set `even_calls`"
        yield Problem("shard-calls", what, where("memory", "shard"), hint)


NEEDS = ("trainer.name", "trainer.spec.needs")
RULES: tuple[Rule, ...] = (
    (("sampling.prompts", "optimizer.updates"), _updates),
    (("run.epochs", "optimizer.updates", "optimizer.warmup"), _warmup),
    (("optimizer.lr", "optimizer.weight_decay"), _decay),
    ((*NEEDS, "sampling.group"), _group),
    ((*NEEDS, "trainer.spec.aggregate"), functools.partial(_uncompared, key="aggregate")),
    ((*NEEDS, "trainer.spec.std"), functools.partial(_uncompared, key="std")),
    ((*NEEDS, "sampling.refill"), _refill),
    (("model.spec", "full"), _quantize),
    (("lora",), holdings.lora_problems),
    (("full",), holdings.full_problems),
    (("trainer", "trainer.spec.needs"), holdings.loaded_problems),
    (("trainer", "trainer.spec.needs", "model.spec"), holdings.loaded_whole),
    (NEEDS, _role_names),
    ((*NEEDS, "run.precision"), _role_precision),
    (("memory.shard", "run.precision"), _shard_precision),
    (("memory.shard", "optimizer.bits"), _shard_bits),
    (("memory.shard", "model"), _shard_adapter),
    (
        ("memory.shard", "model", "sampling.micro_batch", "optimizer.micro_batch", "eval.micro_batch"),
        _shard_batches,
    ),
    (("memory.shard", "trainer"), _shard_trainer),
)
