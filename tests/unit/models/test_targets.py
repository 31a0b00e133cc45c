"""Media become the latents that decode to them, whatever a pipeline does between the two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.types import Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.models.targets import handed, inverse, over_white
from more_families import EVERY
from PIL import Image
from torch import Tensor

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["sd3", "flux-2", "wan", "sana", "qwen-image-2.1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_encoded_decodes_from_what_the_vae_said(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    family = EVERY[name]
    torch.manual_seed(0)
    family.make().save_pretrained(tmp_path)
    adapter = PipelineAdapter(PipelineSpec(path=str(tmp_path), max_sequence_length=family.max_sequence_length))
    adapter.load(CPU, dtype)
    adapter.encode([Row("a cat")])
    size = family.size
    frames = (size.frames,) if size.frames > 1 else ()
    media = torch.rand(2, *frames, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
    x = adapter.encode_media(media, size)
    assert x.shape == (2, *adapter.latent_shape(size))
    vae: Any = adapter.pipe.vae
    if name == "qwen-image-2.1":  # its VAE takes a video of one frame, and is told that all of it is opaque
        media = torch.cat([media, torch.ones(2, 1, size.height, size.width)], 1)[:, None]
    pixels = (2 * media - 1).to(next(vae.parameters()).dtype)
    with torch.no_grad():
        said = vae.encode(pixels.transpose(1, 2) if pixels.dim() == 5 else pixels)
    expected = (said.latent_dist.mode() if "latent_dist" in said else said.latent).float()
    one = torch.cat([handed(vae, lambda latents: adapter.decode(latents, size), row) for row in x.split(1)])
    largest = max(1.0, float(expected.abs().max()))  # pipelines shift latents by numbers of about this size
    torch.testing.assert_close(one, expected, atol=(2e-6 if dtype == torch.float32 else 2e-2) * largest, rtol=0)


def test_what_is_not_opaque_is_seen_on_white() -> None:
    """As where Pillow puts it on white, which rounds to 8 bits."""
    media = torch.randint(0, 256, (2, 4, 6, 5), generator=torch.Generator().manual_seed(0)).float() / 255
    for one in media:
        picture = Image.fromarray((one * 255).round().byte().permute(1, 2, 0).numpy())
        on_white = Image.new("RGB", picture.size, (255, 255, 255))
        on_white.paste(picture, mask=picture.getchannel("A"))
        seen = (over_white(one) * 255).round().byte().permute(1, 2, 0)
        assert int((seen.int() - torch.from_numpy(np.array(on_white)).int()).abs().max()) <= 1
    assert torch.equal(over_white(media[:, :3]), media[:, :3])


def decoder(there: Callable[[Tensor], Tensor]) -> tuple[Any, Callable[[Tensor], Any]]:
    """A pipeline that does something to latents before it calls its VAE."""
    vae = SimpleNamespace(decode=None)
    return vae, lambda x: vae.decode(there(x))


def test_scaled_and_packed_latents_are_found_again() -> None:
    def there(x: Tensor) -> Tensor:
        return (x.reshape(len(x), 3, 4, 5).permute(0, 2, 3, 1).reshape(len(x), 5, 12) / 0.36 + 0.12).bfloat16()

    vae, decode = decoder(there)
    back = inverse(vae, decode, (12, 5), CPU)
    x = torch.randn(2, 12, 5).bfloat16().float()
    torch.testing.assert_close(back(there(x).float()), x, atol=5e-2, rtol=0)


@pytest.mark.parametrize(
    "mixed", [lambda x: x + x.flip(1), lambda x: x[:, :2], lambda x: 0 * x], ids=["sums", "parts", "nothing"]
)
def test_what_mixes_latents_is_refused(mixed: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="mixes latents"):
        inverse(*decoder(mixed), (4, 6), CPU)


def test_a_vae_that_is_never_called_is_refused() -> None:
    vae = SimpleNamespace(decode=None)
    with pytest.raises(ValueError, match="is not called"):
        handed(vae, lambda x: x, torch.zeros(1, 4))
