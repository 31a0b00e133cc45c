"""What every adapter owes, on its own tiny checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.conditions.cache import ConditionCache
from flowfactory.export import trial
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Lora
from flowfactory.testing.subject import Check, NotOwed, expect
from flowfactory.testing.tapped import (
    CPU,
    LEVELS,
    SQUARE,
    TOLERANCE,
    WIDE,
    LoadedAdapter,
    decode_equals_the_tap,
    encode_equals_the_tap,
    near,
    schedule_equals_the_tap,
    true_cfg_equals_the_tap,
    velocity_equals_the_tap,
)

LARGEST = 8_000_000
"""Bytes of a tiny checkpoint."""


class AdapterSubject(LoadedAdapter):
    """An adapter, loaded from its own tiny checkpoint on the CPU."""

    def checks(self) -> Sequence[Check]:
        return CHECKS


def tiny_is_small(subject: AdapterSubject) -> None:
    """Its tiny checkpoint is a few hundred KB, a few MB at most."""
    folder = Path(subject.keys["path"])
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    expect(0 < size <= LARGEST, f"it has {size} bytes, and {LARGEST} are much")


def schedule_falls_to_zero(subject: AdapterSubject) -> None:
    """Noise levels are float32 on the CPU, one more than steps, at most 1, and fall strictly to 0."""
    for steps in (2, 4, 10):
        sigmas = subject.adapter.sigmas(steps, SQUARE)
        expect(sigmas.shape == (steps + 1,), f"{steps} steps have the noise levels {sigmas.tolist()}")
        expect(sigmas.dtype == torch.float32 and sigmas.device == CPU, f"they are {sigmas.dtype} on {sigmas.device}")
        expect(sigmas[0] <= 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all(), f"they are {sigmas.tolist()}")


def conditions_are_tensors(subject: AdapterSubject) -> None:
    """Conditions are tensors with the batch in front, the same for the same rows, whatever they are encoded with."""
    for name, tensor in subject.conditions.items():
        expect(isinstance(tensor, Tensor) and len(tensor) == 3, f"`{name}` is {tensor}, not a tensor of three rows")
        expect(not tensor.requires_grad, f"`{name}` has a gradient")
    rows = subject.rows
    alone = subject.adapter.collate([subject.adapter.encode([row]) for row in rows])
    for name, tensor in subject.conditions.items():
        expect(torch.equal(tensor, alone[name]), f"`{name}` depends on which rows are encoded together")


def conditions_survive_the_cache(subject: AdapterSubject) -> None:
    """Conditions come back from the condition cache bit for bit, and give the same velocities."""
    rows, adapter = subject.rows, subject.adapter
    cache = ConditionCache(subject.folder / "cache", {"adapter": subject.entry.name}, rows, lambda text: None)
    cache.fill(adapter.encode, lambda count: None)
    kept = adapter.collate([cache[row] for row in rows])
    for name, tensor in subject.conditions.items():
        expect(torch.equal(kept[name], tensor), f"`{name}` is another after the cache")
    x = subject.latents()
    expected, found = (adapter.velocity(x, LEVELS, c, 1.0, SQUARE) for c in (subject.conditions, kept))
    expect(torch.equal(expected, found), "velocities are others with conditions from the cache")


def works_without_encoders(subject: AdapterSubject) -> None:
    """Without its encoders, dropped or never loaded, it computes the same velocities and the same media."""
    x, one = subject.latents(), {name: tensor[:1] for name, tensor in subject.conditions.items()}
    expected = subject.adapter.velocity(x, LEVELS, subject.conditions, 1.0, SQUARE)
    dropped = subject.load()
    dropped.encode(subject.rows[:1])
    dropped.drop_encoders()
    for adapter in (dropped, subject.load(encoded=one)):
        expect(adapter.latent_shape(SQUARE) == tuple(x.shape[1:]), "latents have another shape without encoders")
        expect(torch.equal(adapter.sigmas(4, SQUARE), subject.adapter.sigmas(4, SQUARE)), "the schedule is another")
        found = adapter.velocity(x, LEVELS, subject.conditions, 1.0, SQUARE)
        expect(torch.equal(expected, found), "velocities are others without encoders")
        expect(torch.equal(adapter.decode(x, SQUARE), subject.adapter.decode(x, SQUARE)), "media are others")


def velocities_are_each_samples_own(subject: AdapterSubject) -> None:
    """A sample's velocity depends on its own latents, noise level and conditions, not on its batch."""
    adapter, conditions, x = subject.adapter, subject.conditions, subject.latents()
    together = adapter.velocity(x, LEVELS, conditions, 1.0, SQUARE)
    expect(together.shape == x.shape, f"velocities have the shape {tuple(together.shape)}, latents {tuple(x.shape)}")
    for i in range(3):
        own = slice(i, i + 1)
        alone = adapter.velocity(x[own], LEVELS[own], {n: t[own] for n, t in conditions.items()}, 1.0, SQUARE)
        near(together[own], alone, f"the velocity of sample {i} depends on its batch")
    swapped = adapter.velocity(x, LEVELS, {n: t[[1, 0, 2]] for n, t in conditions.items()}, 1.0, SQUARE)
    expect(not torch.allclose(swapped[0], together[0]), "velocities do not depend on the conditions")


def calls_are_as_promised(subject: AdapterSubject) -> None:
    """One velocity takes the same calls of its networks for all batches for which its spec's `calls` says so."""
    adapter, promise, called = subject.adapter, subject.adapter.spec.calls, list[str]()
    if promise == "unknown":
        raise NotOwed("its spec does not say when it calls its networks as often; `[memory] shard` is refused")
    x, conditions = subject.latents(), subject.conditions

    def calls(samples: slice) -> list[str]:
        called.clear()
        adapter.velocity(x[samples], LEVELS[samples], {n: t[samples] for n, t in conditions.items()}, 1.0, SQUARE)
        return list(called)

    hooks = [
        network.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, network in adapter.networks().items()
    ]
    try:
        alone = [calls(slice(i, i + 1)) for i in range(3)]
        expect(all(one == alone[0] for one in alone), f"it calls its networks differently for single samples: {alone}")
        whole = calls(slice(3)) if promise == "batch" else alone[0]
        expect(whole == alone[0], f"for a batch it calls {whole}, for a single sample {alone[0]}")
    finally:
        for hook in hooks:
            hook.remove()


def media_are_in_range(subject: AdapterSubject) -> None:
    """Media are float32 in [0, 1], of the size asked for, each decoded by itself."""
    for size in (SQUARE, WIDE):
        x = subject.latents(size, 2)
        media = subject.adapter.decode(8 * x, size)
        expect(media.dtype == torch.float32, f"media are {media.dtype}")
        expect(media.shape == (2, 3, size.height, size.width), f"media of {size} have the shape {tuple(media.shape)}")
        expect(media.min() >= 0 and media.max() <= 1, f"media range from {media.min():g} to {media.max():g}")
        near(media[:1], subject.adapter.decode(8 * x[:1], size), "an image depends on what is decoded with it")


def media_have_a_gradient(subject: AdapterSubject) -> None:
    """Media have a gradient, each from its own latents; trainers that follow rewards' gradients need it."""
    x = subject.latents(SQUARE, 2).requires_grad_()
    media = subject.adapter.decode(x, SQUARE)
    expect(media.requires_grad, "media have no gradient; leave `torch.no_grad` to core")
    (slope,) = torch.autograd.grad(media[0].sum(), x)
    expect(slope.isfinite().all() and bool(slope[0].any()), "no gradient comes from media, or one that is not finite")
    expect(not slope[1].any(), "an image depends on what is decoded with it")


def gradients_reach_every_lora(subject: AdapterSubject) -> None:
    """Every LoRA parameter that moves the velocity has a gradient, and most parameters do."""
    adapter = subject.load()
    weights = Weights(adapter.networks(), Lora(rank=2, alpha=2.0), adapter.lora_targets(), [], seed=0)
    with torch.no_grad():
        for parameter in weights.parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))

    def ask() -> Tensor:
        return adapter.velocity(subject.latents(), LEVELS, subject.conditions, 1.0, SQUARE).float()

    made = ask()
    expect(made.requires_grad, "velocities have no gradient")
    torch.autograd.backward(made.square().mean())
    without = [n for n, p in weights.parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
    expect(
        len(without) <= len(weights.parameters) / 2, f"{len(without)} LoRA parameters have no gradient: {without[:3]}"
    )
    with torch.no_grad():
        lost = [name for name in without if _moves(weights.parameters[name], made, ask)]
    expect(not lost, f"the velocity depends on {', '.join(lost)}, but no gradient reaches it")


def export_round_trips(subject: AdapterSubject) -> None:
    """LoRA weights written for diffusers load into its pipeline there, and give the velocities that were trained."""
    if not isinstance(subject.adapter, PipelineAdapter):
        raise NotOwed("it drives no diffusers pipeline")
    folder = subject.folder / "export"
    folder.mkdir()
    try:
        gap = trial.lora_gap(subject.make(), subject.rows[0], SQUARE, folder)
    except ValueError as refusal:
        raise NotOwed(str(refusal)) from None
    expect(gap <= TOLERANCE, f"read back, its velocities are {gap:.1e} off the largest")


CHECKS = (
    tiny_is_small,
    schedule_falls_to_zero,
    conditions_are_tensors,
    conditions_survive_the_cache,
    works_without_encoders,
    velocities_are_each_samples_own,
    calls_are_as_promised,
    media_are_in_range,
    media_have_a_gradient,
    gradients_reach_every_lora,
    velocity_equals_the_tap,
    true_cfg_equals_the_tap,
    decode_equals_the_tap,
    schedule_equals_the_tap,
    encode_equals_the_tap,
    export_round_trips,
)


def _moves(parameter: nn.Parameter, before: Tensor, ask: Any) -> bool:
    """Whether the velocity changes with a parameter."""
    kept = parameter.clone()
    parameter.add_(1.0)
    moved = not torch.equal(ask(), before)
    parameter.copy_(kept)
    return moved
