"""Wan from an image: the first frame's latents beside the noisy ones, and for Wan 2.1 what CLIP sees of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from flowfactory import IMAGE, Conditions, Row, Size, flatten, lengths
from PIL import Image
from torch import Tensor

from flowfactory_plugin_wan import WanI2VSpec
from flowfactory_plugin_wan.checkpoint import tiny_wan_i2v
from flowfactory_plugin_wan.wan import NEGATIVES, PROMPTS, Wan

PIXELS, CLIP = f"{IMAGE}.0", "encode_image.0"
"""Names of the condition image `(B, height, width, 3)`, bytes, and of what CLIP makes of it `(B, tokens, width)`."""

TEXT = 512
"""Text tokens that diffusers' attention counts on, to tell them from those of an image."""

KEPT = 64
"""How many condition images' latents are kept, in case they are needed again."""


class WanI2V(Wan[WanI2VSpec]):
    """Wan 2.1 and 2.2 from text and a first frame, one image in each row.

    The autoencoder's part in the conditions depends on the size of the video, so conditions hold the image itself, and
    its latents are made when a size is first asked for.
    """

    edits: ClassVar[bool] = True
    alone: ClassVar[bool] = True
    pipeline: ClassVar[type[Any] | None] = WanImageToVideoPipeline

    def __init__(self, spec: WanI2VSpec) -> None:
        super().__init__(spec)
        self._frames: dict[tuple[Size, bytes], Tensor] = {}

    def load(self, device: torch.device, dtype: torch.dtype, encoded: Conditions | None = None) -> None:
        super().load(device, dtype, encoded)
        if self.pipe.config.expand_timesteps:
            raise self._refusal("it puts the image into what it makes only when it is done, which is not learnt")
        if self.pipe.transformer.config.image_dim is not None and self.spec.max_sequence_length not in (None, TEXT):
            why = f"its attention takes all but the last {TEXT} tokens for the image's"
            raise self._refusal(f"{why}; leave out `max_sequence_length`")

    def seen(self, x: Tensor, conditions: Conditions, size: Size) -> tuple[Tensor, Tensor | None]:
        shapes = lengths(conditions, PIXELS).tolist()
        images = [image[:h, :w] for image, (h, w, _) in zip(conditions[PIXELS], shapes, strict=True)]
        frames = [self._first_frame(image, x, size) for image in images]
        return torch.cat([x, torch.cat(frames).to(x.dtype)], dim=1), conditions.get(CLIP)

    @classmethod
    def tiny(cls, folder: Path, experts: int = 1, expand_timesteps: bool = False) -> Path:
        """Like Wan 2.1, or like the two experts of 2.2."""
        pipe = tiny_wan_i2v(experts)
        pipe.register_to_config(expand_timesteps=expand_timesteps)
        pipe.save_pretrained(folder)
        return folder

    def _encode(self, row: Row, images: Sequence[Image.Image]) -> Conditions:
        """By the pipeline's own methods, and not by its call, which would encode a whole video to no end."""
        if len(images) != 1:
            raise self._refusal(f"it begins with one image, and the prompt {row.prompt!r} has {len(images)}")
        pipe, default = self.pipe, self._parameters["max_sequence_length"].default
        length = self.spec.max_sequence_length or default
        prompts = pipe.encode_prompt([row.prompt], [row.negative_prompt or ""], max_sequence_length=length)
        calls = [("encode_prompt", prompts), (IMAGE, torch.from_numpy(np.array(images[0].convert("RGB")))[None])]
        if pipe.transformer.config.image_dim is not None:
            calls.append(("encode_image", pipe.encode_image(images[0], pipe.device)))
        return flatten(calls, dict.fromkeys((PROMPTS, NEGATIVES, CLIP, PIXELS), ""))

    @torch.no_grad()
    def _first_frame(self, image: Tensor, x: Tensor, size: Size) -> Tensor:
        """Mask and latents `(1, channels, …)` of a video that begins with `image` `(h, w, 3)`, by the pipeline."""
        pixels = image.cpu().contiguous().numpy()
        key = (size, hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest())
        if key not in self._frames:
            if len(self._frames) == KEPT:
                del self._frames[next(iter(self._frames))]
            pipe = self.pipe
            frame = pipe.video_processor.preprocess(Image.fromarray(pixels), height=size.height, width=size.width)
            frame = frame.to(x.device, torch.float32)
            shape = (size.height, size.width, size.frames, torch.float32, x.device, None)
            _, self._frames[key] = pipe.prepare_latents(frame, 1, pipe.vae.config.z_dim, *shape, x[:1])
        return self._frames[key]
