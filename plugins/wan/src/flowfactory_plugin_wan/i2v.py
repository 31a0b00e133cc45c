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

PIXELS, LAST = f"{IMAGE}.0", f"{IMAGE}.1"
"""Names of the first frame and, if there is one, of the last: `(B, height, width, 3)`, bytes."""

CLIP, CLIP_OF_TWO = "encode_image.0", "encode_image.0:row"
"""Names of what CLIP makes of one image `(B, tokens, width)`, and of two `(B, 2, tokens, width)`."""

TEXT = 512
"""Text tokens that diffusers' attention counts on, to tell them from those of an image."""

KEPT = 64
"""How many condition images' latents are kept, in case they are needed again."""


class WanI2V(Wan[WanI2VSpec]):
    """Wan 2.1 and 2.2 from text and a first frame, one image in each row, or a first and a last one.

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
        kept = [name for name in (PIXELS, LAST) if name in conditions]
        pictures = [_pictures(conditions, name) for name in kept]
        frames = torch.cat([self._condition(list(images), x, size) for images in zip(*pictures, strict=True)])
        two = conditions.get(CLIP_OF_TWO)
        seen = conditions.get(CLIP) if two is None else two.flatten(0, 1)
        return torch.cat([x, frames.to(x.dtype)], dim=1), seen

    @classmethod
    def tiny(cls, folder: Path, experts: int = 1, expand_timesteps: bool = False, last: bool = False) -> Path:
        """Like Wan 2.1, like its checkpoint for a first and a last frame, or like the two experts of 2.2."""
        pipe = tiny_wan_i2v(experts, last=last)
        pipe.register_to_config(expand_timesteps=expand_timesteps)
        pipe.save_pretrained(folder)
        return folder

    def _encode(self, row: Row, images: Sequence[Image.Image]) -> Conditions:
        """By the pipeline's own methods, and not by its call, which would encode a whole video to no end."""
        config = self.pipe.transformer.config
        expected = 2 if config.pos_embed_seq_len is not None else 1
        if len(images) not in ({expected} if config.image_dim is not None else {1, 2}):
            what = {1: "begins with one image", 2: "needs two images, its first frame and its last"}[expected]
            raise self._refusal(f"it {what}, and the prompt {row.prompt!r} has {len(images)}")
        pipe, default = self.pipe, self._parameters["max_sequence_length"].default
        length = self.spec.max_sequence_length or default
        prompts = pipe.encode_prompt([row.prompt], [row.negative_prompt or ""], max_sequence_length=length)
        calls = [("encode_prompt", prompts)]
        calls += [(IMAGE, torch.from_numpy(np.array(image.convert("RGB")))[None]) for image in images]
        names = dict.fromkeys((PROMPTS, NEGATIVES, CLIP, PIXELS, LAST), "")
        if config.image_dim is not None:
            calls.append(("encode_image", pipe.encode_image(list(images), pipe.device)))
            names |= {CLIP: ":row"} if len(images) == 2 else {}
        return flatten(calls, names)

    @torch.no_grad()
    def _condition(self, images: list[Tensor], x: Tensor, size: Size) -> Tensor:
        """Mask and latents `(1, channels, …)` of a video with these `(h, w, 3)` at its ends, by the pipeline."""
        pixels = [image.cpu().contiguous().numpy() for image in images]
        digest = hashlib.sha256(b"".join(repr(one.shape).encode() + one.tobytes() for one in pixels)).digest()
        if (key := (size, digest)) not in self._frames:
            if len(self._frames) == KEPT:
                del self._frames[next(iter(self._frames))]
            pipe, shape = self.pipe, {"height": size.height, "width": size.width}
            first, *last = (
                pipe.video_processor.preprocess(Image.fromarray(one), **shape).to(x.device, torch.float32)
                for one in pixels
            )
            place = (size.height, size.width, size.frames, torch.float32, x.device, None)
            _, self._frames[key] = pipe.prepare_latents(first, 1, pipe.vae.config.z_dim, *place, x[:1], *last)
        return self._frames[key]


def _pictures(conditions: Conditions, name: str) -> list[Tensor]:
    shapes = lengths(conditions, name).tolist()
    return [image[:h, :w] for image, (h, w, _) in zip(conditions[name], shapes, strict=True)]
