"""FLUX.1 Kontext: FLUX.1, with the tokens of an image beside those of the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from diffusers import FluxKontextPipeline
from flowfactory import Conditions, Size, lengths, together
from torch import Tensor

from flowfactory_plugin_flux import FluxKontextSpec
from flowfactory_plugin_flux.checkpoint import tiny_flux
from flowfactory_plugin_flux.flux import Flux

LATENTS = "_encode_vae_image.0"
"""Name of the condition image's latents `(B, channels, h, w)`."""


class FluxKontext(Flux[FluxKontextSpec]):
    """FLUX.1 Kontext; each row has one condition image, which the pipeline scales to a size it prefers."""

    edits: ClassVar[bool] = True
    pipeline: ClassVar[type[Any] | None] = FluxKontextPipeline

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size) -> Tensor:
        """One call for each shape of condition images; positive and negative prompts share it."""

        def ask(rows: list[int]) -> Tensor:
            own = {name: tensor[rows] for name, tensor in conditions.items()}
            return Flux.velocity(self, x[rows], sigma[rows], own, guidance, size)

        return together(list(map(tuple, lengths(conditions, LATENTS).tolist())), ask)

    def beside(self, conditions: Conditions) -> tuple[list[Tensor], list[Tensor]]:
        *_, height, width = lengths(conditions, LATENTS)[0].tolist()
        latents = conditions[LATENTS][..., :height, :width]
        tokens: Tensor = self.pipe._pack_latents(latents, *latents.shape[:2], height, width)
        place = latents.device, latents.dtype
        ids: Tensor = self.pipe._prepare_latent_image_ids(1, height // 2, width // 2, *place)
        ids[..., 0] = 1
        return [tokens], [ids]

    @classmethod
    def tiny(cls, folder: Path, dev: bool = True) -> Path:
        """Like FLUX.1 Kontext."""
        parts = {name: part for name, part in tiny_flux(dev).components.items() if part is not None}
        FluxKontextPipeline(**parts).save_pretrained(folder)
        return folder
