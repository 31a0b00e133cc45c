"""Condition images that a pipeline encodes together with its latents, in every call: they are kept whole."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.types import Row
from flowfactory.models import tap
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory_plugin_wan.checkpoint import tiny_wan
from from_images import longcat_edit, z_image_omni
from oracle import run
from other_edits import joy_image
from PIL import Image
from rare_families import of_parts

SIZE = Size(32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_condition_images: None) -> Path:
    made = tmp_path_factory.mktemp("joy")
    torch.manual_seed(0)
    joy_image().save_pretrained(made)
    return made


@pytest.fixture
def adapter(folder: Path) -> PipelineAdapter[PipelineSpec]:
    return load(folder)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PipelineAdapter[PipelineSpec]:
    made = PipelineAdapter(PipelineSpec(path=Location(str(folder))))
    made.load(torch.device("cpu"), dtype)
    return made


def row(folder: Path, width: int, height: int) -> Row:
    file = folder / f"{width}x{height}.png"
    Image.linear_gradient("L").convert("RGB").resize((width, height)).save(file)
    return Row("a cat", images=(file,))


@torch.no_grad()
def test_it_is_kept_whole_and_looked_at(adapter: PipelineAdapter[PipelineSpec], tmp_path: Path) -> None:
    conditions = adapter.encode([row(tmp_path, 48, 32)])
    assert conditions["image.0:row"].shape == (1, 1, 32, 48, 3)
    x, level = torch.randn(1, *adapter.latent_shape(SIZE)), torch.tensor([0.5])
    plain = adapter.velocity(x, level, conditions, 1.0, SIZE)
    dark = {**conditions, "image.0:row": torch.zeros_like(conditions["image.0:row"])}
    assert (adapter.velocity(x, level, dark, 1.0, SIZE) - plain).abs().max() > 1e-4


@torch.no_grad()
def test_one_that_is_cut_otherwise_than_when_it_was_encoded_is_refused(
    adapter: PipelineAdapter[PipelineSpec], tmp_path: Path
) -> None:
    good, tall = (adapter.encode([row(tmp_path, *shape)]) for shape in ((48, 32), (32, 48)))
    x, level = torch.randn(1, *adapter.latent_shape(SIZE)), torch.tensor([0.5])
    adapter.velocity(x, level, good, 1.0, SIZE)
    with pytest.raises(tap.Refused, match=r"32x48 now, and 48x32 when the prompt was encoded; give rows images of"):
        adapter.velocity(x, level, tall, 1.0, SIZE)


def test_without_an_image_it_makes_one_from_text(adapter: PipelineAdapter[PipelineSpec]) -> None:
    adapter.encode([Row("a cat")])
    assert adapter.latent_shape(SIZE) == (1, 16, 1, 4, 6)


@torch.no_grad()
def test_one_that_gives_what_is_made_another_shape_is_refused(tmp_path: Path, small_condition_images: None) -> None:
    """Turned by a right angle it has as many latents, which nothing else would tell."""
    longcat_edit().save_pretrained(tmp_path)
    adapter, size = load(tmp_path), Size(64, 80)
    good, larger, turned = (adapter.encode([row(tmp_path, *shape)]) for shape in ((48, 32), (96, 64), (32, 48)))
    x, level = torch.randn(1, *adapter.latent_shape(size)), torch.tensor([0.5])
    for conditions in (good, larger):
        assert adapter.velocity(x, level, conditions, 1.0, size).shape == x.shape
    with pytest.raises(tap.Refused, match=r"of one of a row it makes latents \(16, 10, 8\), where those of 64x80 are"):
        adapter.velocity(x, level, turned, 1.0, size)


def test_one_that_is_decoded_with_the_latents_is_refused(tmp_path: Path) -> None:
    """Wan 2.2's 5B puts its first frame in when it is done."""
    pipe = of_parts(
        "WanImageToVideoPipeline", functools.partial(tiny_wan, expand_timesteps=True), expand_timesteps=True
    )
    pipe.save_pretrained(tmp_path)
    adapter = load(tmp_path)
    adapter.encode([row(tmp_path, 48, 32)])
    with pytest.raises(tap.Refused, match="it puts its condition image among the latents that it decodes"):
        adapter.latent_shape(Size(32, 48, 5))


@torch.no_grad()
def test_what_sees_it_in_every_call_stays_when_encoders_go(tmp_path: Path) -> None:
    """Z-Image-Omni, whose autoencoder takes images in bfloat16 alone."""
    torch.manual_seed(0)
    z_image_omni().save_pretrained(tmp_path)
    one, dtype = row(tmp_path, 96, 64), torch.bfloat16
    adapter = load(tmp_path, dtype)
    conditions = adapter.encode([one])
    adapter.drop_encoders()
    adapter.sigmas(3, SIZE)
    pipe = DiffusionPipeline.from_pretrained(tmp_path, dtype=dtype)
    pipe.vae.requires_grad_(False)
    given = {"prompt": one.prompt, "negative_prompt": "", "image": Image.open(one.images[0])}
    size = {"height": SIZE.height, "width": SIZE.width}
    made = run(pipe, guidance_scale=5.0, num_inference_steps=3, **given, **size)
    for x, level, v in zip(made.latents, made.sigmas[:, None], made.velocities, strict=False):
        assert torch.equal(adapter.velocity(x, level, conditions, 5.0, SIZE), v)
