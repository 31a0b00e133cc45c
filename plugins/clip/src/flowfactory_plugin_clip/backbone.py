"""A CLIP checkpoint as rewards use it: unit embeddings of prompts and of frames.

    cos(p, x) = <t, i> / (|t| |i|),   t = W_t text(p),  i = W_i vision(x)          CLIP, arXiv:2103.00020

Images pass the checkpoint's own processor, so they are resized, cropped and normalised exactly as its authors did.
Where a gradient is wanted, the same is done to tensors, without rounding to bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from flowfactory import some_frames, to_bytes
from torch import Tensor
from torch.nn.functional import interpolate
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
        return self.seen(pixels)

    def tensors(self, frames: Sequence[Tensor]) -> Tensor:
        """What `images` gives, up to the rounding of pixels to bytes, of images of one size, with their gradient."""
        own = self.processor.image_processor
        x = torch.stack(list(frames)).to(self.model.device).float()
        shortest, height, width = own.size["shortest_edge"], own.crop_size["height"], own.crop_size["width"]
        size = [shortest * side // min(x.shape[2:]) for side in x.shape[2:]]
        x = interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        mean, std = (torch.tensor(own_).view(3, 1, 1).to(x) for own_ in (own.image_mean, own.image_std))
        return self.seen((x[:, :, top : top + height, left : left + width] - mean) / std)

    def seen(self, pixels: Tensor) -> Tensor:
        """Unit embeddings `(N, D)` float64, on the CPU, of normalised pixels `(N, 3, H, W)`."""
        moved = pixels.to(self.model.device, self.model.dtype)
        return _unit(self.model.visual_projection(self.model.vision_model(pixel_values=moved).pooler_output))

    def cosines(self, media: Sequence[Tensor], prompts: Sequence[str], spec: FramesSpec, exact: bool = True) -> Tensor:
        """Similarity `(N,)` float64 of each image or video to its prompt; of a video, pooled over some of its frames.

        Args:
            exact: images pass the processor; otherwise they keep their gradient.
        """
        if not len(media):
            return torch.zeros(0, dtype=torch.float64)
        different = list(dict.fromkeys(prompts))
        frames = [some_frames(one, spec.frames) for one in media]
        texts, every = self.texts(different), list(chain(*frames))
        images = self.images(every) if exact else self.tensors(every)
        scores, start = [], 0
        for prompt, some in zip(prompts, frames, strict=True):
            each = images[start : start + len(some)] @ texts[different.index(prompt)]
            scores.append(_POOLS[spec.pool](each))
            start += len(some)
        return torch.stack(scores)


_POOLS: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "min": torch.amin, "max": torch.amax}


def _unit(x: Tensor) -> Tensor:
    x = x.cpu().double()
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return unit
