"""Putting a run together: from the plan to loaded parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from flowfactory.components.resolved import Components, Events, Target
from flowfactory.conditions.cache import ConditionStore
from flowfactory.conditions.cache import Source as Encoded
from flowfactory.conditions.targets import CachedTargets
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.hooks import Run
from flowfactory.contracts.key import Size
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.specs import DecoupledSpec, StochasticSpec
from flowfactory.contracts.trainer import Trainer
from flowfactory.contracts.types import Row
from flowfactory.data.sources import load_held_out, load_training, pools
from flowfactory.data.store import unpacked_folder
from flowfactory.errors import RunError, did_you_mean, listed
from flowfactory.losses.times import possible
from flowfactory.metrics.clock import Clock, Stopwatch
from flowfactory.metrics.display import Display
from flowfactory.metrics.instruments import Instruments
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.models.quantized import adamw
from flowfactory.plan.plan import Plan
from flowfactory.policy import loras
from flowfactory.policy.caching import shortcuts
from flowfactory.policy.loras import Given
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.weights import Weights, check, masters
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
from flowfactory.spec.tables import Full, Memory, RewardEntry, Spec
from flowfactory.spec.window import candidates
from flowfactory.training.encoding import load_media, load_model, stoppable
from flowfactory.training.evaluate import Evaluator, say_left_out
from flowfactory.training.optimise import CURRENT, Learner


@attrs.frozen(eq=False)
class Parts:
    """A run, loaded: the source of its samples, what learns, and what evaluates where there are held-out prompts."""

    run: Run
    origin: Origin
    events: Events
    processes: Processes
    instruments: Instruments
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
        _see_attention(spec.memory)
    used = [rows[row] for row in _used(spec, rows, done)]
    with _refusals(processes):
        everything, asking = [*used, *held_out_rows], stoppable(stop, processes)
        source = (load or load_model)(spec, adapter, components.source, everything, device, display, clock, asking)
    with display.phase("looking at the model"), clock("load"), _refusals(processes):
        _look_at(spec, adapter)
    with display.phase("reading weights from elsewhere"), clock("load"), _refusals(processes):
        start, others = _given(spec, adapter, trainer)
        check(adapter.networks(), spec.tuning, lora_targets(spec, adapter), start, others.values())
    media = None
    if trainer.needs.source != "rollouts":
        with _refusals(processes):
            media = load_media(spec, adapter, components.source, used, display, clock, stoppable(stop, processes))
    weights = _weights(spec, adapter, trainer, processes, start, others)
    if not processes.any(stop is not None and stop.asked(processes)):
        with display.phase("loading the rewards"), clock("load"), _refusals(processes):
            for each in judges:
                each.load(device, dtype)
    if held_out_rows:
        say_left_out(spec, held_out_judge, display)
    policy = _policy(spec, (adapter, weights, processes), judge, stop)
    made = {role: adamw(weights.parameters.values(), spec.optimizer) for role in (CURRENT, *trainer.needs.roles)}
    optimizers = {role: processes.prepare(optimizer) for role, optimizer in made.items()}
    instruments = Instruments(display, clock, Stopwatch(weights.networks.values(), clock))
    conditions = ConditionStore(source, rows, adapter.collate)
    held_out, seen = ConditionStore(source, held_out_rows, adapter.collate), policy.at(_eval_size(spec))
    return Parts(
        run,
        Origin(plan.digest, plan.world, resumption.versions(plan)),
        components.events,
        processes,
        instruments,
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


def _used(spec: Spec, rows: Sequence[Row], done: int) -> list[int]:
    """The rows that the epochs after `done` may draw."""
    last = max(spec.run.epochs, 1)
    epochs = range(min(done + 1, last), last + 1)
    return rows_used(spec.run.seed, epochs, pools(spec.data, rows), spec.sampling.prompts, spec.sampling.refill)


def _eval_size(spec: Spec) -> Size:
    return spec.eval.size or spec.sampling.size


def _look_at(spec: Spec, adapter: Adapter[Any]) -> None:
    """Ask for what the run will ask for: an impossible size is told at once, before weights are cast to float32."""
    for size, steps in ((spec.sampling.size, spec.sampling.steps), (_eval_size(spec), spec.eval.steps)):
        adapter.latent_shape(size)
        adapter.sigmas(steps or spec.sampling.steps, size)
    _refuse_untrained(spec, adapter)


def _policy(
    spec: Spec, own: tuple[Adapter[Any], Weights, Processes], judge: Judge, stop: StopRequest | None
) -> ModelPolicy:
    """The policy; what only decodes leaves the device where `[memory] offload` says so."""
    offload, s = "vae" in spec.memory.offload, spec.sampling
    dtype, again = DTYPES[spec.run.precision], spec.memory.gradient_checkpointing
    with _refusals(own[2]):
        cache = shortcuts(s, own[1].networks)
    if offload:
        own[0].place(torch.device("cpu"))
    return ModelPolicy(*own, dtype, s.guidance, s.size, offload, again, judge.value, s.merged, cache, stop)


def _refuse_untrained(spec: Spec, adapter: Adapter[Any]) -> None:
    """Raises:
    RunError: at all noise levels that the run may train at, networks answer that are not trained.
    """
    size, steps, own = spec.sampling.size, spec.sampling.steps, spec.trainer.spec
    sigmas, where = adapter.sigmas(steps, size), "[scheduler] window"
    dynamics = spec.scheduler.spec
    if isinstance(own, DecoupledSpec):
        levels, where = possible(own.times, sigmas), "[trainer] times"
    elif isinstance(dynamics, StochasticSpec) and dynamics.density != "none" and not own.needs.gradient:
        levels = sigmas[list(candidates(dynamics.window, steps))]
    else:
        levels, where = sigmas[list(own.learned(steps))], "[trainer]"
    if not adapter.trains_at(levels, size).any():
        what = f"answers at none of the noise levels {levels.max():g} to {levels.min():g} that {where} leaves"
        raise RunError(f"{' and '.join(adapter.networks())}, which [model] trains, {what}; widen it, or train another")


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


def _given(spec: Spec, adapter: Adapter[Any], trainer: Trainer[Any]) -> tuple[Given | None, dict[str, Given]]:
    """The weights to begin with, and the trainer's own sets."""
    pipe = adapter.pipe if isinstance(adapter, PipelineAdapter) else None
    networks, start = adapter.networks(), spec.tuning.from_
    others = {name: loras.read(location, networks, pipe) for name, location in trainer.needs.loaded.items()}
    return None if start is None else loras.read(start, networks, pipe), others


def lora_targets(spec: Spec, adapter: Adapter[Any]) -> Sequence[str]:
    """The model's own choice of what LoRA adapts; none where every weight is trained."""
    return [] if isinstance(spec.tuning, Full) else adapter.lora_targets()


def _weights(
    spec: Spec,
    adapter: Adapter[Any],
    trainer: Trainer[Any],
    processes: Processes,
    start: Given | None,
    others: Mapping[str, Given],
) -> Weights:
    needs, networks = trainer.needs, adapter.networks()
    if processes.sharded and len(networks) > 1 and (needs.trajectory == "final" or needs.gradient or needs.roles):
        why = f"trainer `{spec.trainer.name}` draws its own noise levels, so that each process would call another of"
        what = f"{' and '.join(networks)} at a time, and divided ones are called together"
        processes.refuse(f"[memory] shard: {why} {what}; set it to false, or train the sampled steps")

    def settle(network: torch.nn.Module) -> None:
        try:
            _set_up(network, spec.memory)
        except RunError as error:
            processes.refuse(str(error))
        processes.divide(network, masters)

    kept = [("reference", needs.reference), ("ema", spec.optimizer.ema)]
    sets = [*needs.sets, *needs.roles, *(name for name, wanted in kept if wanted)]
    return Weights(networks, spec.tuning, lora_targets(spec, adapter), sets, spec.run.seed, settle, start, others)


def _see_attention(memory: Memory) -> None:
    """Raises:
    RunError: this machine cannot compute attention that way.
    """
    if memory.attention is None:
        return
    names = [each.value for each in AttentionBackendName]
    if memory.attention.lower() not in names:
        near = did_you_mean(memory.attention, names) or f"there is: {listed(sorted(names))}"
        raise RunError(f"[memory] attention: diffusers knows no `{memory.attention}`; {near}")
    try:
        with attention_backend(memory.attention.lower()):
            pass
    except (ValueError, RuntimeError, ImportError) as error:
        raise RunError(f"[memory] attention = {memory.attention!r}: {error}") from error


def _set_up(network: Any, memory: Memory) -> None:
    """How a diffusers network computes, as `[memory]` says; after LoRA, which compiled blocks must contain.

    Raises:
        RunError: the network or this machine cannot compute attention that way, or has no blocks to compile.
    """
    if memory.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    try:
        if memory.attention is not None:
            network.set_attention_backend(memory.attention)
        if memory.compile:
            network.compile_repeated_blocks()
    except (ValueError, RuntimeError, ImportError) as error:
        raise RunError(f"[memory] asks {type(network).__name__} for what it cannot do: {error}") from error


def _judges(spec: Spec, targets: Mapping[str, Target]) -> tuple[Judge, Judge]:
    """The judge of training, and the one of evaluation: the same unless `[[eval.reward]]` says otherwise."""
    shared: dict[str, Any] = {}

    def judge(entries: Sequence[RewardEntry]) -> Judge:
        idle = [attrs.evolve(e, offload=e.offload or "rewards" in spec.memory.offload) for e in entries]
        return Judge(idle, targets, shared)

    training = judge(spec.rewards)
    return training, judge(spec.eval.rewards) if spec.eval.rewards else training
