"""The networks of a run: what is looked at before they are trained, how they compute, and the weights they have."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.key import Size
from flowfactory.contracts.specs import DecoupledSpec, StochasticSpec
from flowfactory.contracts.trainer import Trainer
from flowfactory.errors import RunError, did_you_mean, listed
from flowfactory.losses.times import possible
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy import loaded, loras, streamed
from flowfactory.policy.loras import Given
from flowfactory.policy.weights import Weights, masters
from flowfactory.processes.distributed import Processes
from flowfactory.spec.tables import Full, Memory, Spec
from flowfactory.spec.window import candidates


def eval_size(spec: Spec) -> Size:
    """That of the samples of evaluations."""
    return spec.eval.size or spec.sampling.size


def streaming(spec: Spec, adapter: Adapter[Any]) -> None:
    """Have an adapter that is still to be loaded leave weights in main memory, where `[memory] offload` says so."""
    if "weights" in spec.memory.offload:
        assert isinstance(adapter, PipelineAdapter), "the others are refused by a rule"
        adapter.onto = functools.partial(streamed.stream, recomputed=spec.memory.gradient_checkpointing)


def look_at(spec: Spec, adapter: Adapter[Any]) -> None:
    """Ask for what the run will ask for: an impossible size is told at once, before weights are cast to float32."""
    for size, steps in ((spec.sampling.size, spec.sampling.steps), (eval_size(spec), spec.eval.steps)):
        adapter.latent_shape(size)
        adapter.sigmas(steps or spec.sampling.steps, size)
    _refuse_untrained(spec, adapter)


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


def given(spec: Spec, adapter: Adapter[Any], trainer: Trainer[Any]) -> tuple[Given | None, dict[str, Given]]:
    """The weights to begin with, and the trainer's own sets."""
    pipe = adapter.pipe if isinstance(adapter, PipelineAdapter) else None
    networks, start = adapter.networks(), spec.tuning.from_
    others = {name: loras.read(location, networks, pipe) for name, location in trainer.needs.loaded.items()}
    return None if start is None else loras.read(start, networks, pipe), others


def lora_targets(spec: Spec, adapter: Adapter[Any]) -> Sequence[str]:
    """The model's own choice of what LoRA adapts; none where every weight is trained."""
    return [] if isinstance(spec.tuning, Full) else adapter.lora_targets()


def made_weights(
    spec: Spec,
    adapter: Adapter[Any],
    trainer: Trainer[Any],
    processes: Processes,
    start: Given | None,
    others: Mapping[str, Given],
) -> Weights:
    """The weights of a run, divided among processes where `[memory] shard` says so.

    Args:
        start: what LoRA begins with. others: sets of the trainer's own, from elsewhere.

    Raises:
        RunError: divided networks cannot be called as the trainer calls them, or cannot be set up.
    """
    needs, networks = trainer.needs, adapter.networks()
    if processes.sharded and len(networks) > 1 and (needs.trajectory == "final" or needs.gradient or needs.roles):
        why = f"trainer `{spec.trainer.name}` draws its own noise levels, so that each process would call another of"
        what = f"{' and '.join(networks)} at a time, and divided ones are called together"
        processes.refuse(f"[memory] shard: {why} {what}; set it to false, or train the sampled steps")

    def settle(network: torch.nn.Module) -> None:
        try:
            set_up(network, spec.memory)
        except RunError as error:
            processes.refuse(str(error))
        loaded.leave_to_autocast(network)
        processes.divide(network, masters)

    kept = [("reference", needs.reference), ("ema", spec.optimizer.ema)]
    sets = [*needs.sets, *needs.roles, *(name for name, wanted in kept if wanted)]
    return Weights(networks, spec.tuning, lora_targets(spec, adapter), sets, spec.run.seed, settle, start, others)


def see_attention(memory: Memory) -> None:
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


def set_up(network: Any, memory: Memory) -> None:
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
