"""Wan: the tap's answers, in one call of each expert that a batch's noise levels ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import WanPipeline
from flowfactory import Conditions, PipelineAdapter, Size, together
from torch import Tensor, nn

from flowfactory_plugin_wan import EXPERTS, WanSpec
from flowfactory_plugin_wan.checkpoint import tiny_wan

SpecT = TypeVar("SpecT", bound=WanSpec)

PROMPTS, NEGATIVES = "encode_prompt.0.0", "encode_prompt.0.1"
"""Names of what the pipeline's `encode_prompt` returned, all of one length."""


class Wan(PipelineAdapter[SpecT]):
    """Wan 2.1 and 2.2, TI2V-5B among them, from text.

    `guidance` above 1 steers away from the negative prompts: `v = v_negative + guidance (v_positive - v_negative)`. Of
    two experts, that for low noise answers below the checkpoint's boundary, at a guidance of its own. Noise levels are
    told to the networks as the pipeline tells them, which for UniPC is in whole thousandths.
    """

    not_encoded: ClassVar[frozenset[str]] = PipelineAdapter.not_encoded | {"guidance_low", "experts"}
    pipeline: ClassVar[type[Any] | None] = WanPipeline

    def load(self, device: torch.device, dtype: torch.dtype, encoded: Conditions | None = None) -> None:
        super().load(device, dtype, encoded)
        if self._boundary() is None and (self.spec.experts != "both" or self.spec.guidance_low is not None):
            raise self._refusal("it has one expert; leave out `experts` and `guidance_low`")
        for name in self._networks.keys() - self.networks().keys():
            self._networks[name].requires_grad_(False).eval()

    def networks(self) -> Mapping[str, nn.Module]:
        if self.spec.experts == "both":
            return self._networks
        name = EXPERTS[self.spec.experts]
        return {name: self._networks[name]}

    def guidance_scales(self, guidance: float) -> dict[str, float]:
        if self._boundary() is None:
            return {"guidance_scale": guidance}
        low = self.spec.guidance_low
        return {"guidance_scale": guidance, "guidance_scale_2": guidance if low is None else low}

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size) -> Tensor:
        """One call of each expert; positive and negative prompts share it."""
        timesteps = self._told(sigma, size)
        experts = self._experts(timesteps)
        timesteps = timesteps.to(x.device)

        def ask(rows: list[int]) -> Tensor:
            own = {name: tensor[rows] for name, tensor in conditions.items()}
            return self._expert(experts[rows[0]], x[rows], timesteps[rows], own, guidance, size)

        return together(experts, ask)

    def trains_at(self, sigma: Tensor, size: Size) -> Tensor:
        trained = self.networks()
        return torch.tensor([EXPERTS[expert] in trained for expert in self._experts(self._told(sigma, size))])

    def seen(self, x: Tensor, conditions: Conditions, size: Size) -> tuple[Tensor, Tensor | None]:
        """What a network sees of latents `x` `(B, …)`, and tokens `(B, tokens, width)` of an image, if any."""
        return x, None

    def decode(self, x: Tensor, size: Size) -> Tensor:
        vae = self.pipe.vae
        mean, std = (
            torch.tensor(statistic).view(1, -1, 1, 1, 1).to(x.device, vae.dtype)
            for statistic in (vae.config.latents_mean, vae.config.latents_std)
        )
        video: Tensor = vae.decode(x.to(vae.dtype) / (1.0 / std) + mean, return_dict=False)[0]
        frames = (video * 0.5 + 0.5).clamp(0, 1).float().transpose(1, 2)
        return frames[:, 0] if size.frames == 1 else frames

    @classmethod
    def tiny(cls, folder: Path, experts: int = 1, expand_timesteps: bool = False) -> Path:
        """Like Wan 2.1, like the two experts of 2.2, or like TI2V-5B."""
        tiny_wan(experts, expand_timesteps).save_pretrained(folder)
        return folder

    def _told(self, sigma: Tensor, size: Size) -> Tensor:
        """What the networks are told at noise levels `(n,)`, on the CPU."""
        told = [self._timestep(level, size) for level in sigma.float().tolist()]
        return torch.tensor(told, dtype=torch.float64).to(self._survey(size).timesteps.dtype)

    def _experts(self, timesteps: Tensor) -> list[str]:
        """Which expert answers at each."""
        boundary = self._boundary()
        return ["high" if boundary is None or told >= boundary else "low" for told in timesteps.tolist()]

    def _boundary(self) -> float | None:
        """The timestep below which the expert for low noise answers."""
        ratio = self.pipe.config.boundary_ratio
        return None if ratio is None else ratio * self.pipe.scheduler.config.num_train_timesteps

    def _expert(
        self, expert: str, x: Tensor, timesteps: Tensor, conditions: Conditions, guidance: float, size: Size
    ) -> Tensor:
        """The guided velocity by one expert.

        TI2V-5B's pipeline repeats the noise level for each token. They are all the same, so once is enough.
        """
        names = (PROMPTS, NEGATIVES) if guidance > 1 else (PROMPTS,)
        network: Any = self._networks[EXPERTS[expert]]
        x, image = self.seen(x, conditions, size)
        v: Tensor = network(
            hidden_states=torch.cat([x] * len(names)).to(network.dtype),
            timestep=torch.cat([timesteps] * len(names)),
            encoder_hidden_states=torch.cat([conditions[name] for name in names]).to(network.dtype),
            encoder_hidden_states_image=None if image is None else torch.cat([image] * len(names)).to(network.dtype),
            return_dict=False,
        )[0]
        if len(names) == 1:
            return v
        positive, negative = v.chunk(2)
        scales = self.guidance_scales(guidance)
        scale = scales["guidance_scale_2" if expert == "low" else "guidance_scale"]
        return negative + scale * (positive - negative)
