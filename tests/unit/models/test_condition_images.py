"""Condition images that a pipeline encodes together with its latents, in every call: they are kept whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.types import Row
from flowfactory.models import tap
from flowfactory.models.pipeline import PipelineAdapter
from other_edits import joy_image
from PIL import Image

SIZE = Size(32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_condition_images: None) -> Path:
    made = tmp_path_factory.mktemp("joy")
    torch.manual_seed(0)
    joy_image().save_pretrained(made)
    return made


@pytest.fixture
def adapter(folder: Path) -> PipelineAdapter[PipelineSpec]:
    made = PipelineAdapter(PipelineSpec(path=Location(str(folder))))
    made.load(torch.device("cpu"), torch.float32)
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
