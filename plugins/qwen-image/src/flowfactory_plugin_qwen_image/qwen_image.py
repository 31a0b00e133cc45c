"""Qwen-Image: the tap's answers, in one call of the transformer however many noise levels and lengths a batch has."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import QwenImagePipeline
from flowfactory import Conditions, PipelineAdapter, PipelineSpec, Size, lengths
from torch import Tensor
from torch.nn import functional as F

from flowfactory_plugin_qwen_image.checkpoint import tiny_qwen_image

SpecT = TypeVar("SpecT", bound=PipelineSpec)

EMBEDS = "encode_prompt.{}.0"
"""Name of what the pipeline's `encode_prompt` returned: its call 0 is for prompts, 1 for negative prompts."""

Shape = tuple[int, int, int]
"""Frames, rows and columns of image tokens."""


class QwenImage(PipelineAdapter[SpecT]):
    """Qwen-Image.

    `guidance` above 1 steers away from the negative prompts and keeps the length of each token's velocity:
    `w = v_negative + guidance (v_positive - v_negative)`, `v = w |v_positive| / |w|`. A row without a negative prompt
    has the empty one. Where the transformer embeds guidance, `guidance` is that and `true_cfg` the classifier-free one.
    """

    pipeline: ClassVar[type[Any] | None] = QwenImagePipeline

    def load(self, device: torch.device, dtype: torch.dtype, encoded: Conditions | None = None) -> None:
        super().load(device, dtype, encoded)
        embedding = self.pipe.transformer.time_text_embed
        if self._embeds_guidance() and "guidance" not in inspect.signature(embedding.forward).parameters:
            raise self._refusal("it embeds guidance, which its transformer in this version of diffusers does not")

    def lora_targets(self) -> Sequence[str]:
        return self.spec.targets

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size) -> Tensor:
        """One call; positive and negative prompts share it."""
        true_cfg = self.guidance_scales(guidance)["true_cfg_scale"]
        calls = (0, 1) if true_cfg > 1 else (0,)
        prompts, mask = _prompts(conditions, calls)
        x = x.to(prompts.dtype)
        timestep = (sigma.to(x.device, torch.float32) * 1000).to(x.dtype) / 1000
        tokens, shapes = self.beside(conditions)
        v: Tensor = self.pipe.transformer(
            hidden_states=torch.cat([torch.cat([x, *tokens], dim=1)] * len(calls)),
            timestep=torch.cat([timestep] * len(calls)),
            guidance=self._guidance(guidance, len(prompts), x.device),
            encoder_hidden_states=prompts,
            encoder_hidden_states_mask=mask,
            img_shapes=[[self._shape(size), *shapes]] * len(prompts),
            return_dict=False,
        )[0][:, : x.shape[1]]
        if len(calls) == 1:
            return v
        positive, negative = v.chunk(2)
        guided = negative + true_cfg * (positive - negative)
        scale: Tensor = torch.norm(positive, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True)
        return guided * scale

    def beside(self, conditions: Conditions) -> tuple[list[Tensor], list[Shape]]:
        """Image tokens `(B, tokens, channels)` that the transformer sees beside the latents, and their shapes."""
        return [], []

    def decode(self, x: Tensor, size: Size) -> Tensor:
        pipe, config = self.pipe, self.pipe.vae.config
        latents = pipe._unpack_latents(x, size.height, size.width, pipe.vae_scale_factor).to(pipe.vae.dtype)
        mean, std = (
            torch.tensor(statistic).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
            for statistic in (config.latents_mean, config.latents_std)
        )
        images: Tensor = pipe.vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
        return (images * 0.5 + 0.5).clamp(0, 1).float()

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        tiny_qwen_image().save_pretrained(folder)
        return folder

    def _embeds_guidance(self) -> bool:
        embeds: bool = self.pipe.transformer.config.guidance_embeds
        return embeds

    def _guidance(self, guidance: float, batch: int, device: torch.device) -> Tensor | None:
        return torch.full((batch,), guidance, device=device) if self._embeds_guidance() else None

    def _shape(self, size: Size) -> Shape:
        pixels = 2 * self.pipe.vae_scale_factor
        return (1, size.height // pixels, size.width // pixels)


def _prompts(conditions: Conditions, calls: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The prompts of several calls as one batch `(n, tokens, width)`, as long as the longest, and which tokens are any.

    The mask `(n, tokens)` is `None` where all are as long, which lets attention take its fastest way.
    """
    names = [EMBEDS.format(call) for call in calls]
    counts = torch.cat([lengths(conditions, name)[:, 0] for name in names])
    shortest, longest = torch.stack(counts.aminmax()).tolist()
    prompts = torch.cat([F.pad(conditions[name], (0, 0, 0, longest - conditions[name].shape[1])) for name in names])
    if shortest == longest:
        return prompts, None
    return prompts, torch.arange(longest, device=prompts.device) < counts.to(prompts.device)[:, None]
