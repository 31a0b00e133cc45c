"""A CLIP checkpoint as rewards use it: unit embeddings of prompts and of frames.

    cos(p, x) = <t, i> / (|t| |i|),   t = W_t text(p),  i = W_i vision(x)          CLIP, arXiv:2103.00020

Images pass the checkpoint's own processor, so they are resized, cropped and normalised exactly as its authors did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from flowfactory import Sample, some_frames, to_bytes
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from flowfactory_plugin_clip import FramesSpec

TOKENS = 77
"""Longest text a CLIP encoder takes; what follows is cut off."""


class Backbone:
    """A `CLIPModel` in evaluation mode and its processor."""

    def __init__(self, model: CLIPModel, processor: CLIPProcessor) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def load(
        cls,
        path: str,
        revision: str | None,
        processor: str,
        processor_revision: str | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Backbone:
        """Read weights and processor, each from a hub id or a folder.

        Raises:
            OSError: there is no such checkpoint, or it cannot be reached.
        """
        model = CLIPModel.from_pretrained(path, revision=revision, dtype=dtype).to(device).eval().requires_grad_(False)
        return cls(model, CLIPProcessor.from_pretrained(processor, revision=processor_revision))

    def place(self, device: torch.device) -> None:
        """Move the weights."""
        self.model.to(device)

    @property
    def temperature(self) -> float:
        """The learned factor of the cosine, `exp(logit_scale)`."""
        return float(self.model.logit_scale.exp())

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings `(N, D)` float64, on the CPU, of prompts, cut off after 77 tokens.

        Every text is padded to the full length: the encoder is causal and read at its end mark, so padding changes
        nothing, and the embedding of a prompt does not depend on its neighbours'.
        """
        tokens = self.processor.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.model.device)
        pooled = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return _unit(self.model.text_projection(pooled))

    def images(self, frames: Sequence[Tensor]) -> Tensor:
        """Unit embeddings `(N, D)` float64, on the CPU, of images `(3, H, W)` in [0, 1], of any sizes."""
        pixels = self.processor.image_processor(images=[to_bytes(f) for f in frames], return_tensors="pt").pixel_values
        moved = pixels.to(self.model.device, self.model.dtype)
        return _unit(self.model.visual_projection(self.model.vision_model(pixel_values=moved).pooler_output))

    def cosines(self, samples: Sequence[Sample], spec: FramesSpec) -> Tensor:
        """Similarity `(N,)` float64 of each sample to its prompt; of a video, pooled over some of its frames."""
        if not samples:
            return torch.zeros(0, dtype=torch.float64)
        prompts = list(dict.fromkeys(sample.row.prompt for sample in samples))
        frames = [some_frames(sample.media, spec.frames) for sample in samples]
        texts, images = self.texts(prompts), self.images(list(chain(*frames)))
        scores, start = [], 0
        for sample, some in zip(samples, frames, strict=True):
            each = images[start : start + len(some)] @ texts[prompts.index(sample.row.prompt)]
            scores.append(_POOLS[spec.pool](each))
            start += len(some)
        return torch.stack(scores)


_POOLS: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "min": torch.amin, "max": torch.amax}


def _unit(x: Tensor) -> Tensor:
    x = x.cpu().double()
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return unit
