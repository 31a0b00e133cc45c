"""What must hold between the tables of a spec."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flowfactory.builtin import PipelineSpec
from flowfactory.components.resolved import contributions
from flowfactory.contracts.key import Density
from flowfactory.contracts.specs import Decay, DifferentiableSpec, SchedulerSpec, StochasticSpec, Times, TrainerSpec
from flowfactory.data import sources
from flowfactory.data.sources import Data
from flowfactory.discovery.registry import Registry
from flowfactory.errors import Place, Problem, did_you_mean, listed
from flowfactory.spec import holdings, window
from flowfactory.spec.kinds import attributes, keys
from flowfactory.spec.tables import (
    Checkpoint,
    Component,
    Eval,
    Memory,
    Optimizer,
    RewardEntry,
    RunTable,
    Sampling,
    Track,
)
from flowfactory.spec.toml import Node

ACCEPTED: Mapping[str, tuple[Density, ...]] = {"gaussian": ("gaussian",), "any": ("gaussian", "squared-error")}
"""Which densities of a scheduler satisfy what a trainer needs; any at all where it needs none."""
TRACKERS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb")},
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""accelerate's own, which cannot be asked without importing torch, each with the packages of which it needs one."""

Rule = tuple[tuple[str, ...], Callable[..., Iterator[Problem]]]
"""Names of `Spec`'s attributes, and what yields the problems of these; it is first given a `Where`."""


def problems(
    root: Node, parts: Mapping[str, Any], registry: Registry, whole: bool = True, also: Sequence[Rule] = ()
) -> list[Problem]:
    """Contradictions between the parts of a spec.

    Args:
        parts: what could be structured, by the names of `Spec`'s attributes.
        whole: whether all is sound in itself. What is not lacks attributes, and rules that look for them say nothing.
        also: further rules.
    """
    rules: tuple[Rule, ...] = (
        (("trainer", "scheduler"), _density),
        (("sampling", "scheduler"), _window),
        (("sampling", "scheduler"), _shared_noise),
        (("trainer", "sampling", "scheduler", "memory"), window.credit_problems),
        (("trainer", "sampling"), _tables),
        (("sampling", "optimizer"), _updates),
        (("run", "optimizer"), _warmup),
        (("model", "tuning"), holdings.quantize_problems),
        (("tuning",), holdings.start_problems),
        (("trainer", "model"), holdings.loaded_problems),
        (("trainer", "run"), holdings.role_problems),
        (("memory", "run", "optimizer", "model"), _shard),
        (("memory", "model", "trainer", "sampling", "optimizer", "eval"), _shard_calls),
        (("trainer", "rewards"), _rewards),
        (("trainer", "sampling"), _group),
        (("eval",), lambda where, table: _labels(where, table.rewards, ("eval", "reward"))),
        (("data",), sources.problems),
        (("trainer", "data", "rewards", "eval"), sources.reward_problems),
        (("data", "eval"), _evaluation),
        (("track",), _trackers),
        (("checkpoint", "data", "eval", "rewards"), _best),
        *also,
    )
    where = Where(root, registry)
    found: list[Problem] = []
    for names, rule in rules:
        if all(name in parts for name in names):
            try:
                found += rule(where, *(parts[name] for name in names))
            except AttributeError:
                if whole:
                    raise
    return found


class Where:
    """Finds the places to point at."""

    def __init__(self, root: Node, registry: Registry) -> None:
        self.root, self.registry = root, registry

    def __call__(self, *address: str | int) -> Place:
        """The value at an address, or else the nearest table above it."""
        for end in range(len(address), 0, -1):
            node = self.root.at(*address[:end])
            if node is not None:
                return node.place
        return self.root.place


def _density(where: Where, trainer: Component, scheduler: Component) -> Iterator[Problem]:
    own: TrainerSpec = trainer.spec
    needs, density = own.needs, scheduler.spec.density
    accepted = ACCEPTED.get(needs.density, ("gaussian", "squared-error", "none"))
    if needs.trajectory == "steps":
        accepted = tuple(d for d in accepted if d != "none")
    if density in accepted:
        return
    fitting = [
        c.provides.name
        for c in where.registry.loaded("schedulers")
        if issubclass(c.provides.spec, SchedulerSpec) and c.provides.spec.density in accepted
    ]
    none = "knows none of its noise" if isinstance(scheduler.spec, StochasticSpec) else "is deterministic"
    has = none if density == "none" else f"has only a surrogate for it ({density})"
    wants = "a Gaussian probability" if needs.density == "gaussian" else "a probability"
    what = f"trainer `{trainer.name}` needs {wants} of each step, but scheduler `{scheduler.name}` {has}"
    yield Problem(
        "density", what, where("scheduler", "name"), f"set [scheduler] name to one of {listed(sorted(fitting))}"
    )


def _window(where: Where, sampling: Sampling, scheduler: Component) -> Iterator[Problem]:
    if isinstance(scheduler.spec, StochasticSpec):
        for key, what in window.problems(scheduler.spec.window, sampling.steps):
            yield Problem("window", f"[scheduler] window `{key}`: {what}", where("scheduler", "window", key))


def _shared_noise(where: Where, sampling: Sampling, scheduler: Component) -> Iterator[Problem]:
    if sampling.shared_noise and not isinstance(scheduler.spec, StochasticSpec):
        what = f"scheduler `{scheduler.name}` is deterministic, so shared noise would make all samples of a group equal"
        yield Problem("shared-noise", what, where("sampling", "shared_noise"), "set it to false")


def _updates(where: Where, sampling: Sampling, optimizer: Optimizer) -> Iterator[Problem]:
    prompts, updates = sampling.prompts, optimizer.updates
    if prompts % updates:
        near = nearest_divisors(prompts, updates)
        what = f"[optimizer] updates = {updates} does not divide [sampling] prompts = {prompts} into whole groups"
        hint = f"the nearest that do are {', '.join(map(str, near))}"
        yield Problem("updates", what, where("optimizer", "updates"), hint)


def nearest_divisors(number: int, wanted: int, most: int = 3) -> list[int]:
    """The divisors of `number` nearest to `wanted`, rising."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    divisors = {*small, *(number // n for n in small)}
    return sorted(sorted(divisors, key=lambda n: (abs(n - wanted), n))[:most])


def _group(where: Where, trainer: Component, sampling: Sampling) -> Iterator[Problem]:
    needs = trainer.spec.needs
    if needs.source == "rollouts" and needs.scores and sampling.group < 2 and needs.branches is None:
        what = f"trainer `{trainer.name}` compares the samples of a prompt, and [sampling] group is {sampling.group}"
        yield Problem("group", what, where("sampling", "group"), "set it to 2 or more")
    if needs.source != "rollouts" and sampling.group != keys(Sampling)["group"].default:
        what = f"trainer `{trainer.name}` learns from the data, whose rows make the groups: [sampling] group has no use"
        yield Problem("group", what, where("sampling", "group"), "leave it out")
    for name in ("aggregate", "std"):
        if not needs.scores and attributes(trainer.spec)[name] != keys(type(trainer.spec))[name].default:
            what = f"trainer `{trainer.name}` compares no samples: `{name}` has no use"
            yield Problem("uncompared", what, where("trainer", name), "leave it out")
    if sampling.refill and not (needs.source == "rollouts" and needs.scores):
        what = f"trainer `{trainer.name}` scores no samples, so there is nothing that [sampling] refill could replace"
        yield Problem("refill", what, where("sampling", "refill"), "leave it out")


def _tables(where: Where, trainer: Component, sampling: Sampling) -> Iterator[Problem]:
    for name, table in attributes(trainer.spec).items():
        if isinstance(table, Times):
            for key, what in window.level_problems(table, sampling.steps):
                yield Problem("times", f"[trainer] {name} `{key}`: {what}", where("trainer", name, key))
        if isinstance(table, Decay):
            for key, what in window.decay_problems(table):
                yield Problem("decay", f"[trainer] {name} `{key}`: {what}", where("trainer", name, key))


def _warmup(where: Where, run: RunTable, optimizer: Optimizer) -> Iterator[Problem]:
    total = run.epochs * optimizer.updates
    if total and optimizer.warmup >= total:
        made = f"{run.epochs} epochs x {optimizer.updates} updates = {total} steps"
        what = f"the warm-up of {optimizer.warmup} steps never ends: the run makes {made}"
        yield Problem("warmup", what, where("optimizer", "warmup"))


def _trackers(where: Where, track: Track) -> Iterator[Problem]:
    """A plugin that brings trackers knows their names when the run starts, not before."""
    if where.registry.brings_trackers():
        return
    for i, name in enumerate(track.to):
        needed = TRACKERS.get(name, ())
        if needed and not any(importlib.util.find_spec(package) for package in needed):
            what = f"tracker `{name}` needs the package {needed[0].replace('_', '-')}, which is not installed"
            yield Problem("tracker", what, where("track", "to", i), f"try: pip install {needed[0].replace('_', '-')}")
        elif not needed:
            hint = did_you_mean(name, TRACKERS) or "is the plugin that brings it listed in `plugins`?"
            what = f"there is no tracker `{name}` (there is: {listed(sorted(TRACKERS))})"
            yield Problem("tracker", what, where("track", "to", i), hint)


def _shard(where: Where, memory: Memory, run: RunTable, optimizer: Optimizer, model: Component) -> Iterator[Problem]:
    """What goes together with weights that lie in one piece only."""
    excluded = {
        '[run] precision = "fp16"': run.precision == "fp16",
        f"[optimizer] bits = {optimizer.bits}": optimizer.bits != 32,
        "[model] quantize": isinstance(model.spec, PipelineSpec) and model.spec.quantize is not None,
    }
    for key, written in excluded.items():
        if memory.shard and written:
            what = f"[memory] shard does not go together with {key}"
            yield Problem("shard", what, where("memory", "shard"), "leave out one of them")


def _shard_calls(
    where: Where,
    memory: Memory,
    model: Component,
    trainer: Component,
    sampling: Sampling,
    optimizer: Optimizer,
    table: Eval,
) -> Iterator[Problem]:
    """Processes call a divided network together, so each has to call it as often, whatever its samples are."""
    if not memory.shard:
        return
    why = "with [memory] shard every process has to call the network as often"
    calls = model.spec.calls
    if calls == "unknown":
        what = f"{why}, and adapter `{model.name}` does not say when it does"
        yield Problem("shard-calls", what, where("memory", "shard"), "set it to false; its author could set `calls`")
    batches = {"sampling": sampling.micro_batch, "optimizer": optimizer.micro_batch, "eval": table.micro_batch or 1}
    if calls == "sample" and (large := [name for name, size in batches.items() if size > 1]):
        what = f"{why}, and how often adapter `{model.name}` does depends on the samples of a micro-batch"
        hint = f"set micro_batch = 1 in {' and '.join(f'[{name}]' for name in large)}"
        yield Problem("shard-calls", what, where("memory", "shard"), hint)
    if not trainer.spec.even_calls:
        what = f"{why}, and trainer `{trainer.name}` does not say that it does"
        hint = "set it to false; its author could set `even_calls`"
        yield Problem("shard-calls", what, where("memory", "shard"), hint)


def _rewards(where: Where, trainer: Component, rewards: tuple[RewardEntry, ...]) -> Iterator[Problem]:
    yield from _labels(where, rewards, ("reward",))
    if rewards and trainer.spec.needs.source != "rollouts":
        what = f"trainer `{trainer.name}` learns from the data, so there are no samples that [[reward]] could score"
        yield Problem("unscored", what, where("reward", 0, "name"), "leave it out; evaluations have [[eval.reward]]")
    if not (trainer.spec.needs.scores or trainer.spec.needs.gradient):
        return
    if not rewards:
        yield Problem("no-reward", "there is nothing to train for: at least one [[reward]] is needed", where("reward"))
    elif all(entry.weight == 0 for entry in rewards):
        what = "every [[reward]] has weight 0, so nothing would be learned"
        yield Problem("weights", what, where("reward", 0, "weight"))
    for i, entry in enumerate(rewards if trainer.spec.needs.gradient else ()):
        if entry.weight != 0 and not isinstance(entry.spec, DifferentiableSpec):
            offers = contributions(where.registry)[0]["rewards"]
            able = {c.provides.name for c in offers if issubclass(c.provides.spec, DifferentiableSpec)}
            what = f"trainer `{trainer.name}` follows the gradient of rewards, and reward `{entry.name}` has none"
            hint = f"set its weight to 0, or take one that has (there is: {listed(sorted(able))})"
            yield Problem("no-gradient", what, where("reward", i, "name"), hint)


def _labels(where: Where, rewards: tuple[RewardEntry, ...], at: tuple[str, ...]) -> Iterator[Problem]:
    labels = [entry.label for entry in rewards]
    seen = set[str]()
    for i, label in enumerate(labels):
        if label in seen:
            key = "label" if where.root.at(*at, i, "label") else "name"
            what = f"two rewards have the label `{label}`, which names their metrics"
            yield Problem("labels", what, where(*at, i, key), "give one of them another `label`")
        seen.add(label)


def _evaluation(where: Where, data: Data, table: Eval) -> Iterator[Problem]:
    """Without held-out prompts nothing is evaluated; asking for it all the same is a mistake, not asking is not."""
    written = where.root.at("eval")
    if written is not None and table.every > 0 and data.sources and not data.held_out:
        what = f"[eval] asks for evaluations (every = {table.every}), but [data] has no `eval_prompts`"
        yield Problem("no-eval-prompts", what, where("eval", "every"), "add them, or set [eval] every = 0")


def _best(
    where: Where, checkpoint: Checkpoint, data: Data, table: Eval, rewards: tuple[RewardEntry, ...]
) -> Iterator[Problem]:
    """A metric to judge by must be one that evaluations have."""
    if checkpoint.best in ("score", "none"):
        return
    held_out = data.held_out if table.every > 0 else ()
    asked = [entry for entry in table.rewards or rewards if any(map(entry.applies_to, held_out))]
    known = [f"eval/{entry.label}/mean" for entry in asked]
    if checkpoint.best not in known:
        what = f"[checkpoint] best: no evaluation has `{checkpoint.best}` (there is: {listed(known)})"
        yield Problem("best", what, where("checkpoint", "best"), did_you_mean(checkpoint.best, known))
