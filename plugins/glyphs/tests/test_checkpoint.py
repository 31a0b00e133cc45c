"""The checkpoint: small, complete, loadable without a network, and it writes words, not always those that are asked."""

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from flowfactory_plugin_glyphs.architecture import TEXT_TOKENS
from flowfactory_plugin_glyphs.rewards import darkness, likeness
from flowfactory_plugin_glyphs.writing import asked, render, spell


@pytest.fixture(scope="module")
def folder() -> Path:
    with as_file(files("flowfactory_plugin_glyphs") / "checkpoint") as path:
        return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 8e6


def test_it_writes_what_is_asked_imperfectly(pipe: FluxPipeline, folder: Path) -> None:
    texts = (folder.parent / "prompts" / "eval.txt").read_text(encoding="utf-8").splitlines()
    settings = {"height": 16, "width": 64, "num_inference_steps": 8, "max_sequence_length": TEXT_TOKENS}
    generator = torch.Generator().manual_seed(0)
    images = pipe(texts, **settings, generator=generator, output_type="pt").images
    own = [likeness(darkness(image), asked(text)) for text, image in zip(texts, images, strict=True)]
    others = [likeness(darkness(image), asked(text)) for text, image in zip(texts[::-1], images, strict=True)]
    assert np.mean(others) + 0.1 < np.mean(own) < 0.95


def test_the_vae_gives_back_what_it_is_given(pipe: FluxPipeline) -> None:
    rng = np.random.default_rng(0)
    words = [spell(rng) for _ in range(50)]
    x = torch.from_numpy(np.stack([render(word, rng) for word in words])).permute(0, 3, 1, 2)
    with torch.no_grad():
        y = (pipe.vae.decode(pipe.vae.encode(2 * x - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)
    assert np.mean([likeness(darkness(image), word) for word, image in zip(words, y, strict=True)]) > 0.95
