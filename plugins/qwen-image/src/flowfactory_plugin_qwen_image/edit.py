"""Qwen-Image-Edit: Qwen-Image, with the tokens of an image beside those of the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from diffusers import QwenImageEditPipeline
from flowfactory import Conditions, Size, lengths, together
from torch import Tensor

from flowfactory_plugin_qwen_image import QwenImageEditSpec
from flowfactory_plugin_qwen_image.checkpoint import tiny_qwen_image_edit
from flowfactory_plugin_qwen_image.qwen_image import QwenImage, Shape

LATENTS = "_encode_vae_image.0"
"""Name of the condition image's latents `(B, channels, 1, h, w)`."""


class QwenImageEdit(QwenImage[QwenImageEditSpec]):
    """Qwen-Image-Edit; each row has one condition image, with which its prompts are encoded, too."""

    edits: ClassVar[bool] = True
    pipeline: ClassVar[type[Any] | None] = QwenImageEditPipeline

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size) -> Tensor:
        """One call for each shape of condition images; positive and negative prompts share it."""

        def ask(rows: list[int]) -> Tensor:
            own = {name: tensor[rows] for name, tensor in conditions.items()}
            return QwenImage.velocity(self, x[rows], sigma[rows], own, guidance, size)

        return together(list(map(tuple, lengths(conditions, LATENTS).tolist())), ask)

    def beside(self, conditions: Conditions) -> tuple[list[Tensor], list[Shape]]:
        *_, height, width = lengths(conditions, LATENTS)[0].tolist()
        latents = conditions[LATENTS][..., :height, :width]
        tokens: Tensor = self.pipe._pack_latents(latents, *latents.shape[:2], height, width)
        return [tokens], [(1, height // 2, width // 2)]

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        tiny_qwen_image_edit().save_pretrained(folder)
        return folder
