"""`{{ cookiecutter.name }}`, which begins as Stable Diffusion 3.

What the pipeline computes, in one call of the transformer however many noise levels there are. All that is not here,
`PipelineAdapter` does by driving the pipeline itself; the conformance kit compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from flowfactory import Conditions, PipelineAdapter, Size
from flowfactory.models.tiny import stable_diffusion_3
from torch import Tensor

from {{ cookiecutter.__module }} import {{ cookiecutter.__class }}Spec

EMBEDS, NEGATIVE_EMBEDS, POOLED, NEGATIVE_POOLED = (f"encode_prompt.0.{i}" for i in range(4))
"""What the pipeline's `encode_prompt` returns, in this order."""


class {{ cookiecutter.__class }}(PipelineAdapter[{{ cookiecutter.__class }}Spec]):
    """Stable Diffusion 3 and 3.5; `guidance` above 1 steers away from the negative prompt."""

    def lora_targets(self) -> Sequence[str]:
        """Queries, keys, values and outputs of every attention, of the image and of the text."""
        image, text = ("to_q", "to_k", "to_v", "to_out.0"), ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        return [f"attn.{name}" for name in (*image, *text)]

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size) -> Tensor:
        """`v_negative + guidance (v - v_negative)`, both halves in one call."""
        guided = guidance > 1
        embeds, pooled = conditions[EMBEDS], conditions[POOLED]
        if guided:
            embeds = torch.cat([conditions[NEGATIVE_EMBEDS], embeds])
            pooled = torch.cat([conditions[NEGATIVE_POOLED], pooled])
        copies = 2 if guided else 1
        v: Tensor = self.pipe.transformer(
            hidden_states=torch.cat([x.to(embeds.dtype)] * copies),
            timestep=torch.cat([1000 * sigma.to(x.device)] * copies),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        if not guided:
            return v
        negative, positive = v.chunk(2)
        return negative + guidance * (positive - negative)

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        """The real architecture, very small, with random weights."""
        stable_diffusion_3().save_pretrained(folder)
        return folder
