"""Putting a run together: from the plan to loaded parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch

from flowfactory.cli.ui import Ui
from flowfactory.conditions.cache import ConditionCache, ConditionStore, Source, cache_folder
from flowfactory.conditions.data import load_rows
from flowfactory.conditions.identity import encoder_identity
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.specs import RewardEntry
from flowfactory.contracts.trainer import Trainer
from flowfactory.contracts.types import Row
from flowfactory.discovery.registry import Registry
from flowfactory.errors import RunError
from flowfactory.metrics.metrics import Clock, Stopwatch
from flowfactory.models.quantized import adamw
from flowfactory.plan.plan import Plan
from flowfactory.policy.policy import ModelPolicy
from flowfactory.policy.weights import Weights, masters
from flowfactory.processes.distributed import DTYPES, Processes
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.tables import Full, Memory, Spec


@attrs.frozen(eq=False)
class Run:
    """A run, as event hooks see it."""

    folder: Path
    plan: Plan


@attrs.frozen(eq=False)
class Parts:
    """Everything a run is made of, loaded."""

    spec: Spec
    folder: Path
    registry: Registry
    ui: Ui
    clock: Clock
    stopwatch: Stopwatch
    processes: Processes
    adapter: Adapter[Any]
    scheduler: Scheduler[Any]
    trainer: Trainer[Any]
    weights: Weights
    policy: ModelPolicy
    optimizer: torch.optim.Optimizer
    judge: Judge
    data: Prompts
    held_out: Prompts | None
    held_out_policy: ModelPolicy
    held_out_judge: Judge


@attrs.frozen(eq=False)
class Prompts:
    """Rows of the data and their conditions."""

    rows: Sequence[Row]
    conditions: ConditionStore


def assemble(plan: Plan, registry: Registry, folder: Path, ui: Ui, load: Callable[..., Source] | None = None) -> Parts:
    """Load every part of a run: prompts first, since they fail fastest, then the model, then the rewards.

    Args:
        load: does what `load_model` does when absent.
    """
    spec = plan.spec
    processes = Processes(spec.run.precision, spec.memory.shard)
    processes.agree(plan)
    with _refusals(processes):
        rows = load_rows(Path(spec.data.prompts))
        held_out_rows = load_rows(Path(spec.data.eval_prompts)) if spec.data.eval_prompts and spec.eval.every else []
    folder = Path(processes.gather_objects([str(folder)])[0])  # each may have found another one free
    device, dtype, clock = processes.device, DTYPES[spec.run.precision], Clock(processes.device)
    trainer: Trainer[Any] = registry.target("trainers", spec.trainer.name)(spec.trainer.spec)
    scheduler: Scheduler[Any] = registry.target("schedulers", spec.scheduler.name)(spec.scheduler.spec)
    adapter: Adapter[Any] = registry.target("adapters", spec.model.name)(spec.model.spec)
    with _refusals(processes):
        source = (load or load_model)(spec, registry, adapter, [*rows, *held_out_rows], device, ui, clock)
    data = Prompts(rows, ConditionStore(source, rows, adapter.collate))
    held_out = Prompts(held_out_rows, ConditionStore(source, held_out_rows, adapter.collate)) if held_out_rows else None
    eval_size = spec.eval.size or spec.sampling.size
    with ui.phase("looking at the model"), clock("load"), _refusals(processes):
        # Here, where an impossible size is told at once, and before weights are cast to float32.
        for size, steps in ((spec.sampling.size, spec.sampling.steps), (eval_size, spec.eval.steps)):
            adapter.latent_shape(size)
            adapter.sigmas(steps or spec.sampling.steps, size)
    weights = _weights(spec, adapter, trainer, processes)
    judge, held_out_judge = _judges(spec, registry)
    with ui.phase("loading the rewards"), clock("load"), _refusals(processes):
        judge.load(device, dtype)
        held_out_judge.load(device, dtype)
    offload = "vae" in spec.memory.offload
    if offload:
        adapter.place(torch.device("cpu"))
    policy = ModelPolicy(adapter, weights, processes, dtype, spec.sampling.guidance, spec.sampling.size, offload)
    return Parts(
        spec=spec,
        folder=folder,
        registry=registry,
        ui=ui,
        clock=clock,
        stopwatch=Stopwatch(weights.networks.values(), clock),
        processes=processes,
        adapter=adapter,
        scheduler=scheduler,
        trainer=trainer,
        weights=weights,
        policy=policy,
        optimizer=processes.prepare(adamw(weights.parameters.values(), spec.optimizer)),
        judge=judge,
        data=data,
        held_out=held_out,
        held_out_policy=policy.at(eval_size),
        held_out_judge=held_out_judge,
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


def load_model(
    spec: Spec,
    registry: Registry,
    adapter: Adapter[Any],
    rows: Sequence[Row],
    device: torch.device,
    ui: Ui,
    clock: Clock,
) -> ConditionCache:
    """Load the model and encode what the cache lacks; where it lacks nothing, the encoders are not even read."""
    precision = spec.run.precision
    with ui.phase("looking for encoded prompts"), clock("encode"):
        source = registry.find("adapters", spec.model.name).source
        identity = encoder_identity(adapter, precision, {source.name: source.version})
        cache = ConditionCache(cache_folder(spec.memory.cache), identity, rows, ui.say)
        missing = cache.missing()
    with ui.phase("loading the model"), clock("load"):
        adapter.load(device, DTYPES[precision], None if missing else cache[rows[0]])
    with ui.phase("encoding prompts", len(missing), "prompts") as bar, clock("encode"), torch.no_grad():
        cache.fill(adapter.encode, bar.advance)
        adapter.drop_encoders()
    return cache


def _weights(spec: Spec, adapter: Adapter[Any], trainer: Trainer[Any], processes: Processes) -> Weights:
    needs, networks = trainer.needs, adapter.networks()
    if processes.sharded and len(networks) > 1 and needs.trajectory == "final":
        why = f"trainer `{spec.trainer.name}` draws its own noise levels, so that each process would call another of"
        what = f"{' and '.join(networks)} at a time, and divided ones are called together"
        processes.refuse(f"[memory] shard: {why} {what}; set it to false, or train the sampled steps")

    def settle(network: torch.nn.Module) -> None:
        _set_up(network, spec.memory)
        processes.divide(network, masters)

    sets = [*needs.sets, *(["reference"] if needs.reference else []), *(["ema"] if spec.optimizer.ema else [])]
    targets = [] if isinstance(spec.tuning, Full) else adapter.lora_targets()
    return Weights(networks, spec.tuning, targets, sets, spec.run.seed, settle)


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


def _judges(spec: Spec, registry: Registry) -> tuple[Judge, Judge]:
    """The judge of training, and the one of evaluation: the same unless `[[eval.reward]]` says otherwise."""
    shared: dict[str, Any] = {}

    def judge(entries: Sequence[RewardEntry]) -> Judge:
        idle = [attrs.evolve(e, offload=e.offload or "rewards" in spec.memory.offload) for e in entries]
        return Judge(idle, registry, shared)

    training = judge(spec.rewards)
    return training, judge(spec.eval.rewards) if spec.eval.rewards else training
