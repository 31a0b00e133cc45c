"""What a diffusers pipeline does by itself, through its public call, as the reference for adapters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import MethodType
from typing import Any

import attrs
import torch
from diffusers import DiffusionPipeline
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.key import Size
from flowfactory.contracts.scheduler import euler
from flowfactory.contracts.types import Conditions, Row
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor


@attrs.frozen(eq=False)
class Run:
    """One plain run. `latents` `(T+1)` from noise to the end, `velocities` `(T)` as the scheduler received them.

    With a time for each token it receives their opposite.
    """

    sigmas: Tensor
    latents: Sequence[Tensor]
    velocities: Sequence[Tensor]
    media: Tensor


FRAMES = 2
"""The axis of frames in latents `(B, channels, frames, height, width)`."""


@torch.no_grad()
def run(pipe: DiffusionPipeline, **arguments: Any) -> Run:
    """Call the pipeline as any user would, and note what passes through its scheduler, or one copy of it a frame."""
    steps: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def noted(self: Any, model_output: Tensor, timestep: Tensor, sample: Tensor, **kwargs: Any) -> Any:
        sample = sample.clone()  # some pipelines write the next latents where these are
        stepped = type(self).step(self, model_output, timestep, sample, **kwargs)
        velocity = -model_output if "per_token_timesteps" in kwargs else model_output
        steps.append((id(self), velocity, sample, stepped[0]))
        return stepped

    pipe.scheduler.step = MethodType(noted, pipe.scheduler)
    torch.manual_seed(0)  # for what is drawn without the generator
    try:
        generator = torch.Generator().manual_seed(0)
        (media,) = pipe(**arguments, generator=generator, output_type="pt", return_dict=False)
    finally:
        del pipe.scheduler.step
    count = len({number for number, *_ in steps})

    def whole(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack(tensors[i : i + count], FRAMES) for i in range(0, len(tensors), count)]

    _, *noted_tensors = zip(*steps, strict=True)
    velocities, samples, made = map(whole if count > 1 else list, noted_tensors)
    media = media.float()
    if media.shape[-3] == 4:  # Qwen-Image 2.1 says how opaque a pixel is, and has it seen on white
        opaque = media[..., 3:, :, :]
        media = media[..., :3, :, :] * opaque + (1 - opaque)
    return Run(pipe.scheduler.sigmas, [samples[0], *made], velocities, media)


def conditions_of(adapter: Adapter[Any], rows: Sequence[Row]) -> Conditions:
    """Encoded one by one and joined, as core does."""
    return adapter.collate([adapter.encode([row]) for row in rows])


@torch.no_grad()
def rollout(
    adapter: Adapter[Any], x: Tensor, conditions: Conditions, steps: int, guidance: float, size: Size
) -> Tensor:
    """The final latents of an Euler rollout, kept in the dtype of `x`."""
    sigmas = adapter.sigmas(steps, size)
    for sigma, sigma_next in pairwise(sigmas):
        level, next_level = sigma.expand(len(x)), sigma_next.expand(len(x))
        x = euler(adapter.velocity(x, level, conditions, guidance, size), x, level, next_level).to(x.dtype)
    return x


def lora_without_gradient(
    adapter: Adapter[Any], x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size
) -> list[str]:
    """Inject LoRA with random weights as core does, take one backward pass, and name what no gradient reached."""
    config = LoraConfig(r=2, target_modules=list(adapter.lora_targets()), init_lora_weights=False)
    for network in adapter.networks().values():
        inject_adapter_in_model(config, network)
    adapter.velocity(x, sigma, conditions, guidance, size).square().mean().backward()
    trained = {
        f"{name}.{parameter}": tensor.grad
        for name, network in adapter.networks().items()
        for parameter, tensor in network.named_parameters()
        if "lora_" in parameter
    }
    assert trained
    return [name for name, gradient in trained.items() if gradient is None or not gradient.any()]
