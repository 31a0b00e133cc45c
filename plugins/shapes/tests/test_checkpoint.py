"""The embedded checkpoint: small, complete, loadable without a network, and it draws what the world contains."""

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from flowfactory_plugin_shapes.architecture import TEXT_TOKENS
from flowfactory_plugin_shapes.rewards import pixels
from flowfactory_plugin_shapes.scoring import find, grade
from flowfactory_plugin_shapes.world import caption, prompts, render, sample
from transformers import CLIPTextModel, T5EncoderModel


@pytest.fixture(scope="module")
def folder() -> Path:
    with as_file(files("flowfactory_plugin_shapes") / "checkpoint") as path:
        return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 8e6


def test_its_parts_are_the_real_classes_in_one_dtype(pipe: FluxPipeline) -> None:
    kinds = (FluxTransformer2DModel, AutoencoderKL, CLIPTextModel, T5EncoderModel)
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    assert [type(part) for part in parts] == list(kinds)
    assert {part.dtype for part in parts} == {torch.float32}
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)


def test_it_draws_objects_and_follows_prompts_imperfectly(pipe: FluxPipeline) -> None:
    asked = prompts("eval")
    images = pipe(
        asked,
        height=32,
        width=32,
        num_inference_steps=8,
        max_sequence_length=TEXT_TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    drawn = [pixels(image) for image in images.float()]
    assert np.mean([bool(find(image)[0]) for image in drawn]) > 0.9
    grades = [grade(prompt, image) for prompt, image in zip(asked, drawn, strict=True)]
    assert 0.3 < np.mean([g.graded for g in grades]) < 0.9


def test_the_vae_gives_back_what_it_is_given(pipe: FluxPipeline) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample(rng) for _ in range(100)]
    x = torch.from_numpy(np.stack([render(scene, rng) for scene in scenes])).permute(0, 3, 1, 2)
    with torch.no_grad():
        y = (pipe.vae.decode(pipe.vae.encode(2 * x - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)
    grades = [grade(caption(scene), pixels(image)) for scene, image in zip(scenes, y, strict=True)]
    assert np.mean([g.correct for g in grades]) >= 0.99
    assert np.mean([g.graded for g in grades]) > 0.99
