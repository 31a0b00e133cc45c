"""Every family computes the same when its encoders were never read: all prompts were in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Location
from flowfactory.contracts.types import Conditions, Row
from flowfactory.models.pipeline import PipelineAdapter
from more_families import EVERY
from PIL import Image

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder")


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_all_is_the_same_without_encoders(name: str, tmp_path: Path, small_condition_images: None) -> None:
    family, image = EVERY[name], tmp_path / "image.png"
    torch.manual_seed(0)
    family.make().save_pretrained(tmp_path / "model")
    Image.linear_gradient("L").convert("RGB").resize(family.shapes[0]).save(image)

    def loaded(encoded: Conditions | None) -> PipelineAdapter[PipelineSpec]:
        path, length = Location(str(tmp_path / "model")), family.max_sequence_length
        adapter = PipelineAdapter(PipelineSpec(path=path, max_sequence_length=length, true_cfg=family.true_cfg))
        adapter.load(torch.device("cpu"), torch.float32, encoded)
        return adapter

    one = loaded(None)
    conditions = one.encode([Row("a cat", "blurry", (image,) * family.image)])
    other, size = loaded(conditions), family.size
    assert not {part for part in ENCODERS if other.pipe.components.get(part) is not None}
    assert other.latent_shape(size) == one.latent_shape(size)
    assert torch.equal(other.sigmas(4, size), one.sigmas(4, size))
    x, sigma = torch.randn(1, *one.latent_shape(size)), one.sigmas(4, size)[1:2]
    a, b = (adapter.velocity(x, sigma, conditions, family.guidance, size) for adapter in (one, other))
    assert torch.equal(a, b)
    assert torch.equal(one.decode(x, size), other.decode(x, size))
