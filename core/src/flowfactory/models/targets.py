"""Media as latents: the inverse of what a pipeline does to latents before its VAE decodes them.

Pipelines scale, shift, pack and patch latents, each in its own way, but all of them element by element: what the VAE is
handed is `z[j] = a[j] x[p(j)] + b[j]`. So `a`, `b` and the permutation `p` are found by decoding numbers, without a
single call of the VAE, and undone after its encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

DIGIT = 16
"""Indices are told in digits to this base, which every number format carries exactly."""


class Handed(BaseException):  # so that nobody takes it for an error
    """Carries what a VAE is about to decode out of a pipeline's call."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z


@attrs.frozen(eq=False)
class Inverse:
    """From the VAE's own latents back to a pipeline's.

    place: for each element of a VAE's latent, which of the pipeline's it comes from. scale, shift: of the way there.
    """

    shape: tuple[int, ...]
    place: Tensor
    scale: Tensor
    shift: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Latents `(B, …)` float32 of the pipeline from the VAE's `(B, …)`."""
        flat = (z.float() - self.shift) / self.scale
        latents = torch.empty(len(z), self.place.numel(), device=z.device)
        latents[:, self.place.to(z.device)] = flat.flatten(1)
        return latents.reshape(len(z), *self.shape)


def handed(vae: Any, decode: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """What a VAE is handed when `decode` is called with latents; the VAE does not run.

    Raises:
        ValueError: it is handed nothing.
    """

    def stop(z: Tensor, *_: Any, **__: Any) -> Any:
        raise Handed(z.detach().float())

    vae.decode, own = stop, vae.decode
    try:
        decode(x)
    except Handed as found:
        return found.z
    finally:
        vae.decode = own
    raise ValueError("its VAE is not called when latents are decoded, so media cannot be encoded for it")


def inverse(vae: Any, decode: Callable[[Tensor], Any], shape: tuple[int, ...], device: torch.device) -> Inverse:
    """How to undo what happens to latents `(…)` before the VAE decodes them.

    Raises:
        ValueError: it is not done element by element.
    """

    def there(values: Tensor) -> Tensor:
        return handed(vae, decode, values.reshape(1, *shape).to(device))

    count = torch.Size(shape).numel()
    index, shift = torch.arange(count), there(torch.zeros(count))
    scale = there(torch.ones(count)) - shift
    place, base = torch.zeros_like(shift, dtype=torch.long), 1
    if shift.numel() == count and bool((scale != 0).all()):
        while base < count:
            digits = (there((index // base % DIGIT).float()) - shift) / scale
            place += base * digits.round().long()
            base *= DIGIT
    if not torch.equal(place.flatten().sort().values.cpu(), index):
        raise ValueError("it mixes latents before its VAE decodes them, so media cannot be encoded for it")
    return Inverse(shape, place.flatten(), scale, shift)


def over_white(media: Tensor) -> Tensor:
    """Media of three channels; on white where a fourth says how opaque a pixel is.

    The encoder of Qwen-Image 2.1 has such images on white, too.
    """
    if media.shape[-3] != 4:
        return media
    colours, opaque = media[..., :3, :, :], media[..., 3:, :, :]
    return colours * opaque + (1 - opaque)


@torch.no_grad()
def encoded(vae: Any, media: Tensor, back: Inverse) -> Tensor:
    """Latents `(B, …)` float32 of media in [0, 1]: the mode of what the VAE says, so that it can be cached."""
    device, dtype = next(vae.parameters()).device, next(vae.parameters()).dtype
    if getattr(vae.config, "in_channels", 3) == 4:
        media = torch.cat([media, torch.ones_like(media[..., :1, :, :])], -3)  # opaque
    pixels = (2 * media - 1).to(device, dtype)
    if back.shift.dim() == 5:  # a VAE of videos takes (B, 3, F, H, W)
        pixels = pixels[:, :, None] if pixels.dim() == 4 else pixels.transpose(1, 2)
    said = vae.encode(pixels)
    z = said.latent_dist.mode() if "latent_dist" in said else said.latent
    if z.shape[1:] != back.shift.shape[1:]:
        what = f"{tuple(z.shape[1:])}, and its decoder takes {tuple(back.shift.shape[1:])}"
        raise ValueError(f"its VAE makes latents of the shape {what}, so media cannot be encoded for it")
    return back(z)
