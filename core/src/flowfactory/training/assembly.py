"""Putting a run together: from the plan to loaded parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch

from flowfactory.components.resolved import Components, Events, Target
from flowfactory.conditions.cache import ConditionCache, ConditionStore
from flowfactory.conditions.cache import Source as Encoded
from flowfactory.conditions.targets import CachedTargets
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.hooks import Run
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.trainer import Trainer
from flowfactory.contracts.types import Row
from flowfactory.data.sources import load_held_out, load_training, pools
from flowfactory.data.store import unpacked_folder
from flowfactory.errors import RunError
from flowfactory.metrics.clock import Clock, Stopwatch
from flowfactory.metrics.display import Display
from flowfactory.metrics.instruments import Instruments
from flowfactory.plan.plan import Plan
from flowfactory.policy.caching import shortcuts
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.resting import adamw
from flowfactory.policy.weights import Weights, check
from flowfactory.processes.distributed import DTYPES, Processes
from flowfactory.processes.stop import StopRequest
from flowfactory.rewards.scoring import Judge
from flowfactory.runs import resumption
from flowfactory.runs.archive import Origin
from flowfactory.sampling.epochs import rows_used
from flowfactory.sampling.rollouts import Rollouts
from flowfactory.sampling.source import Source
from flowfactory.sampling.stored import Stored
from flowfactory.sampling.studio import Studio
from flowfactory.spec.tables import RewardEntry, Spec
from flowfactory.training.encoding import encode_more, load_media, load_model, stoppable
from flowfactory.training.evaluate import Evaluator, say_left_out
from flowfactory.training.networks import (
    eval_size,
    given,
    look_at,
    lora_targets,
    made_weights,
    see_attention,
    streaming,
)
from flowfactory.training.optimise import CURRENT, Learner


@attrs.frozen(eq=False)
class Parts:
    """A run, loaded: the source of its samples, what learns, and what evaluates where there are held-out prompts.

    encode: sees to it that what an epoch draws is encoded.
    """

    run: Run
    origin: Origin
    events: Events
    processes: Processes
    instruments: Instruments
    encode: Callable[[int], None]
    source: Source
    learner: Learner
    evaluator: Evaluator | None


def assemble(
    plan: Plan,
    components: Components,
    folder: Path,
    display: Display,
    processes: Processes,
    load: Callable[..., Encoded] | None = None,
    stop: StopRequest | None = None,
    done: int = 0,
) -> Parts:
    """Load every part of a run: prompts first, since they fail fastest, then the model, then the rewards, which are
    asked before whether they can be.

    Args:
        load: does what `load_model` does when absent.
        stop: asked by the policy, and while prompts are encoded; who is stopped then gets parts without them.
        done: epochs that are over; only the rows of later ones are encoded.
    """
    spec = plan.spec
    processes.agree(plan)
    with _refusals(processes):
        rows, held_out_rows = _rows(spec)
    run = Run(Path(processes.gather_objects([str(folder)])[0]), plan)  # each may have found another folder free
    device, dtype, clock = processes.device, DTYPES[spec.run.precision], Clock(processes.device)
    trainer: Trainer[Any] = components.trainer(spec.trainer.spec)
    scheduler: Scheduler[Any] = components.scheduler(spec.scheduler.spec)
    adapter: Adapter[Any] = components.adapter(spec.model.spec)
    with display.phase("reaching the rewards"), _refusals(processes):
        judge, held_out_judge = _judges(spec, components.rewards)
        judges = list(dict.fromkeys((judge, held_out_judge)))  # often one and the same
        for each in judges:
            each.reach()
        see_attention(spec.memory)
    last = max(spec.run.epochs, 1)
    begins = min(done + 1, last)
    used = _used(spec, rows, range(begins, last + 1))
    first = None if spec.memory.encode == "before" else [*_used(spec, rows, range(begins, begins + 1)), *held_out_rows]
    streaming(spec, adapter)
    with _refusals(processes):
        every, asking = [*used, *held_out_rows], stoppable(stop, processes)
        source = (load or load_model)(spec, adapter, components.source, every, device, display, clock, asking, first)
    with display.phase("looking at the model"), clock("load"), _refusals(processes):
        look_at(spec, adapter)
    with display.phase("reading weights from elsewhere"), clock("load"), _refusals(processes):
        start, others = given(spec, adapter, trainer)
        check(adapter.networks(), spec.tuning, lora_targets(spec, adapter), start, others.values())
    media = None
    if trainer.needs.source != "rollouts":
        with _refusals(processes):
            media = load_media(spec, adapter, components.source, used, display, clock, stoppable(stop, processes))
    weights = made_weights(spec, adapter, trainer, processes, start, others)
    if not processes.any(stop is not None and stop.asked(processes)):
        with display.phase("loading the rewards"), clock("load"), _refusals(processes):
            for each in judges if processes.team.leads or trainer.needs.gradient else ():
                each.load(device, dtype)
    if held_out_rows:
        say_left_out(spec, held_out_judge, display)
    if spec.memory.compile:
        display.say("blocks are compiled when they are first called to sample and to train: that takes a while, once")
    policy = _policy(spec, adapter, weights, processes, judge, stop)
    optimizers = _optimizers(spec, trainer, weights, processes)
    instruments = Instruments(display, clock, Stopwatch(weights.networks.values(), clock))
    conditions = ConditionStore(source, rows, adapter.collate)
    held_out, seen = ConditionStore(source, held_out_rows, adapter.collate), policy.at(eval_size(spec))
    return Parts(
        run,
        Origin(plan.digest, plan.world, resumption.versions(plan)),
        components.events,
        processes,
        instruments,
        _encoding(spec, adapter, source, rows, processes, instruments, stop),
        Rollouts(
            Studio(spec, run, components.events, processes, instruments, conditions, policy, scheduler, trainer, judge)
        )
        if media is None
        else Stored(spec, processes, rows, CachedTargets(media, rows), policy),
        Learner(spec, processes, instruments, conditions, policy, scheduler, trainer, weights, optimizers),
        Evaluator(spec, run, processes, instruments, held_out, seen, scheduler, weights, held_out_judge)
        if held_out_rows
        else None,
    )


def _rows(spec: Spec) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and those that are held out."""
    unpacked = unpacked_folder(spec.memory.cache)
    return load_training(spec.data, unpacked), load_held_out(spec.data, unpacked) if spec.eval.every else []


def _used(spec: Spec, rows: Sequence[Row], epochs: range) -> list[Row]:
    """The rows that some epochs may draw."""
    used = rows_used(spec.run.seed, epochs, pools(spec.data, rows), spec.sampling.prompts, spec.sampling.refill)
    return [rows[row] for row in used]


def _encoding(
    spec: Spec,
    adapter: Adapter[Any],
    source: Encoded,
    rows: Sequence[Row],
    processes: Processes,
    instruments: Instruments,
    stop: StopRequest | None,
) -> Callable[[int], None]:
    """What encodes when an epoch begins, where not all was encoded before."""
    if spec.memory.encode == "before" or not isinstance(source, ConditionCache):
        return lambda epoch: None
    left = bool(source.missing())

    def encode(epoch: int) -> None:
        nonlocal left
        display, clock, asking = instruments.display, instruments.clock, stoppable(stop, processes)
        with _refusals(processes):
            if left:
                drawn = _used(spec, rows, range(epoch, epoch + 1))
                left = encode_more(spec, adapter, source, drawn, processes.device, display, clock, asking)
        if stop is not None:
            stop.check(processes)

    return encode


def _optimizers(
    spec: Spec, trainer: Trainer[Any], weights: Weights, processes: Processes
) -> dict[str, torch.optim.Optimizer]:
    """One of each role's weights, the trained ones among them."""
    rests = "optimizer" in spec.memory.offload
    made = {role: adamw(weights.parameters.values(), spec.optimizer, rests) for role in (CURRENT, *trainer.needs.roles)}
    return {role: processes.prepare(optimizer) for role, optimizer in made.items()}


def _policy(
    spec: Spec,
    adapter: Adapter[Any],
    weights: Weights,
    processes: Processes,
    judge: Judge,
    stop: StopRequest | None,
) -> ModelPolicy:
    """The policy; what only decodes leaves the device where `[memory] offload` says so."""
    offload, s = "vae" in spec.memory.offload, spec.sampling
    with _refusals(processes):
        cache = shortcuts(s, weights.networks)
    if offload:
        adapter.place(torch.device("cpu"))
    return ModelPolicy(
        *(adapter, weights, processes, DTYPES[spec.run.precision], s.guidance, s.size),
        offload=offload,
        recompute=spec.memory.gradient_checkpointing,
        rewarded=lambda media, rows: judge.value(media, rows, processes.rescaling),
        merged=s.merged,
        cache=cache,
        stop=stop,
    )


@contextmanager
def _refusals(processes: Processes) -> Iterator[None]:
    """What an adapter refuses (a `ValueError`, by its contract) ends the run in words, as a `RunError` does."""
    error: RunError | None = None
    try:
        yield
    except RunError as own:
        error = own
    except ValueError as own:
        error = RunError(str(own))
        error.__cause__ = own
    processes.go_on_unless(error)


def _judges(spec: Spec, targets: Mapping[str, Target]) -> tuple[Judge, Judge]:
    """The judge of training, and the one of evaluation: the same unless `[[eval.reward]]` says otherwise."""
    shared: dict[str, Any] = {}

    def judge(entries: Sequence[RewardEntry]) -> Judge:
        idle = [attrs.evolve(e, offload=e.offload or "rewards" in spec.memory.offload) for e in entries]
        return Judge(idle, targets, shared)

    training = judge(spec.rewards)
    return training, judge(spec.eval.rewards) if spec.eval.rewards else training
