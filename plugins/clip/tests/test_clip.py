"""CLIP similarity against transformers' own `CLIPModel` on the same checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.spec.structure import load_spec
from flowfactory_plugin_clip import CLIPSpec
from flowfactory_plugin_clip.backbone import Backbone
from flowfactory_plugin_clip.clip import CLIP
from flowfactory_plugin_clip.tiny import tiny_clip
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "two blue squares left of a green triangle", "a photo of " + 40 * "very "]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def images(count: int, height: int = 48, width: int = 40) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def samples(media: list[Tensor], prompts: list[str]) -> list[Sample]:
    return [Sample(Row(prompt), one, 0, i) for i, (prompt, one) in enumerate(zip(prompts, media, strict=True))]


def unshared(key: str, factory: Callable[[], Any]) -> Any:
    return factory()


def reward(checkpoint: Path, dtype: torch.dtype = torch.float64, **keys: Any) -> CLIP:
    made = CLIP(CLIPSpec(path=str(checkpoint), **keys))
    made.load(CPU, dtype, unshared)
    return made


@torch.no_grad()
def direct(checkpoint: Path, media: list[Tensor], prompts: list[str]) -> Tensor:
    """Cosines by the model's own forward pass, from PIL images."""
    model = CLIPModel.from_pretrained(checkpoint, dtype=torch.float64).eval()
    processor = CLIPProcessor.from_pretrained(checkpoint)
    pictures = [Image.fromarray((m * 255).round().byte().permute(1, 2, 0).numpy()) for m in media]
    inputs = processor(text=prompts, images=pictures, padding=True, truncation=True, max_length=77, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    return model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()


def test_similarity_equals_the_models_own(checkpoint: Path) -> None:
    media = list(images(3))
    scores = reward(checkpoint).score(samples(media, PROMPTS))
    expected = direct(checkpoint, media, PROMPTS)
    torch.testing.assert_close(torch.tensor(scores, dtype=torch.float64), expected, atol=1e-9, rtol=0)
    assert expected.std() > 1e-3


def test_float32_is_as_exact_as_float32_can_be(checkpoint: Path) -> None:
    media = list(images(3))
    scores = reward(checkpoint, torch.float32).score(samples(media, PROMPTS))
    expected = direct(checkpoint, media, PROMPTS)
    torch.testing.assert_close(torch.tensor(scores, dtype=torch.float64), expected, atol=1e-6, rtol=0)


def test_scale_multiplies(checkpoint: Path) -> None:
    few = samples(list(images(2)), PROMPTS[:2])
    once, scaled = reward(checkpoint).score(few), reward(checkpoint, scale=2.5).score(few)
    assert scaled == pytest.approx([2.5 * float(score) for score in once if score is not None])


def test_a_score_does_not_depend_on_its_neighbours(checkpoint: Path) -> None:
    made = reward(checkpoint)
    all_at_once = made.score(samples(list(images(3)), PROMPTS))
    one_by_one = [made.score([sample])[0] for sample in samples(list(images(3)), PROMPTS)]
    assert all_at_once == pytest.approx(one_by_one, abs=1e-12)


def test_text_past_77_tokens_is_cut_off(checkpoint: Path) -> None:
    image = list(images(1))
    long = "a" * 76
    scores = [reward(checkpoint).score(samples(image, [text]))[0] for text in (long, long + " and more", "a" * 70)]
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]


@pytest.mark.parametrize("pool", ["mean", "min", "max"])
def test_a_video_pools_the_scores_of_evenly_spread_frames(checkpoint: Path, pool: str) -> None:
    video = images(6)
    found = reward(checkpoint, frames=3, pool=pool).score(samples([video], PROMPTS[:1]))
    each = direct(checkpoint, list(video[[0, 2, 4]]), PROMPTS[:1] * 3)
    expected = {"mean": each.mean(), "min": each.min(), "max": each.max()}[pool]
    assert found == pytest.approx([float(expected)], abs=1e-9)


def test_images_of_several_sizes_share_a_batch(checkpoint: Path) -> None:
    media = [*images(1, 48, 40), *images(1, 40, 64)]
    scores = reward(checkpoint).score(samples(media, PROMPTS[:2]))
    each = [float(direct(checkpoint, [m], [p])[0]) for m, p in zip(media, PROMPTS[:2], strict=True)]
    assert scores == pytest.approx(each, abs=1e-9)


def test_entries_with_the_same_files_share_one_backbone(checkpoint: Path) -> None:
    asked: dict[str, Backbone] = {}
    for frames in (1, 4):
        CLIP(CLIPSpec(path=str(checkpoint), frames=frames)).load(
            CPU, torch.float32, lambda key, factory: asked.setdefault(key, factory())
        )
    assert len(asked) == 1


def test_the_example_is_a_sound_spec() -> None:
    spec = load_spec(Path(__file__).parents[1] / "examples" / "clip.toml", Registry())
    assert isinstance(spec.rewards[0].spec, CLIPSpec)


@pytest.mark.parametrize("size", [(48, 40), (64, 64), (24, 32)])
def test_values_are_scores_but_for_the_rounding_of_pixels(checkpoint: Path, size: tuple[int, int]) -> None:
    """On smooth images, as models make them: of noise, a byte more or less is much."""
    made, prompts = reward(checkpoint, torch.float32, scale=2.0), [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    coarse = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    media = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    scores = torch.tensor(made.score(samples(list(media), prompts)))
    values = made.value(media, [Row(prompt) for prompt in prompts]).float()
    assert float((values - scores).abs().max()) < 2e-3
    assert float(scores.max() - scores.min()) > 1e-2


def test_the_gradient_of_a_video_reaches_the_frames_that_are_scored(checkpoint: Path) -> None:
    made = reward(checkpoint, torch.float32, frames=2)
    video = images(2 * 4).reshape(2, 4, 3, 48, 40).requires_grad_()
    (slope,) = torch.autograd.grad(made.value(video, [Row(PROMPTS[0])] * 2).sum(), video)
    moved = slope.flatten(2).abs().sum(2) > 0
    assert moved.tolist() == [[True, False, True, False]] * 2
