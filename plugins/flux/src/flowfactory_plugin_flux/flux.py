"""FLUX.1: the tap's answers, in one call of the transformer however many noise levels a batch has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import FluxPipeline
from flowfactory import Conditions, PipelineAdapter, PipelineSpec, Size
from torch import Tensor

from flowfactory_plugin_flux.checkpoint import tiny_flux

EMBEDS, POOLED, TEXT_IDS = "encode_prompt.{}.0", "encode_prompt.{}.1", "encode_prompt.{}.2:shared"
"""Names of what the pipeline's `encode_prompt` returned: its call 0 is for prompts, 1 for negative prompts."""

SpecT = TypeVar("SpecT", bound=PipelineSpec)


class Flux(PipelineAdapter[SpecT]):
    """FLUX.1 dev and schnell.

    `guidance` is dev's embedded guidance. `true_cfg` above 1 also steers away from the negative prompts, at twice the
    cost: `v = v_negative + true_cfg (v_positive - v_negative)`. A row without a negative prompt has the empty one.
    """

    pipeline: ClassVar[type[Any] | None] = FluxPipeline

    def __init__(self, spec: SpecT) -> None:
        super().__init__(spec)
        self._image_ids: dict[tuple[Size, torch.device, torch.dtype], Tensor] = {}

    def lora_targets(self) -> Sequence[str]:
        return self.spec.targets

    def guidance_scales(self, guidance: float) -> dict[str, float]:
        return {"guidance_scale": guidance, "true_cfg_scale": self.spec.true_cfg}

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size) -> Tensor:
        """One call; positive and negative prompts share it."""
        calls = (0, 1) if self.spec.true_cfg > 1 else (0,)
        prompts = torch.cat([conditions[EMBEDS.format(call)] for call in calls])
        pooled = torch.cat([conditions[POOLED.format(call)] for call in calls])
        x = x.to(prompts.dtype)
        timestep = (sigma.to(x.device, torch.float32) * 1000).to(x.dtype) / 1000
        tokens, ids = self.beside(conditions)
        v: Tensor = self.pipe.transformer(
            hidden_states=torch.cat([torch.cat([x, *tokens], dim=1)] * len(calls)),
            timestep=torch.cat([timestep] * len(calls)),
            guidance=self._guidance(guidance, len(prompts), x.device),
            pooled_projections=pooled,
            encoder_hidden_states=prompts,
            txt_ids=conditions[TEXT_IDS.format(0)][0],
            img_ids=torch.cat([self._ids(size, x.device, prompts.dtype), *ids]),
            return_dict=False,
        )[0][:, : x.shape[1]]
        if len(calls) == 1:
            return v
        positive, negative = v.chunk(2)
        return negative + self.spec.true_cfg * (positive - negative)

    def beside(self, conditions: Conditions) -> tuple[list[Tensor], list[Tensor]]:
        """Image tokens `(B, tokens, channels)` that the transformer sees beside the latents, and their ids."""
        return [], []

    def decode(self, x: Tensor, size: Size) -> Tensor:
        pipe, config = self.pipe, self.pipe.vae.config
        latents = pipe._unpack_latents(x.to(pipe.vae.dtype), size.height, size.width, pipe.vae_scale_factor)
        latents = latents / config.scaling_factor + config.shift_factor
        images: Tensor = pipe.vae.decode(latents, return_dict=False)[0]
        return (images * 0.5 + 0.5).clamp(0, 1).float()

    @classmethod
    def tiny(cls, folder: Path, dev: bool = True) -> Path:
        """Like FLUX.1 dev, or like schnell."""
        tiny_flux(dev).save_pretrained(folder)
        return folder

    def _guidance(self, guidance: float, batch: int, device: torch.device) -> Tensor | None:
        if not self.pipe.transformer.config.guidance_embeds:
            return None
        return torch.full((batch,), guidance, device=device, dtype=torch.float32)

    def _ids(self, size: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Row and column of each image token, `(tokens, 3)`."""
        key = (size, device, dtype)
        if key not in self._image_ids:
            pixels = 2 * self.pipe.vae_scale_factor
            height, width = size.height // pixels, size.width // pixels
            self._image_ids[key] = self.pipe._prepare_latent_image_ids(1, height, width, device, dtype)
        return self._image_ids[key]
