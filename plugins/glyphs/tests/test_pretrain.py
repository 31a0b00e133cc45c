"""Pre-training: what the captions get wrong, and that the whole script runs."""

from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline
from flowfactory_plugin_glyphs.architecture import TEXT_TOKENS
from flowfactory_plugin_glyphs.pretrain import main, misspell
from flowfactory_plugin_glyphs.writing import prompt


def test_letters_are_misspelt_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    read = [misspell("MOON", 0.25, rng) for _ in range(2000)]
    wrong = np.mean([[a != b for a, b in zip("MOON", word, strict=True)] for word in read])
    assert abs(wrong - 0.25) < 0.02
    assert misspell("MOON", 0.0, rng) == "MOON"
    assert all(a != b for a, b in zip("MOON", misspell("MOON", 1.0, rng), strict=True))


def test_the_script_writes_a_pipeline(tmp_path: Path) -> None:
    sizes = "--images 300 --vae-steps 2 --clean-steps 2 --noisy-steps 1"
    result = CliRunner().invoke(main, [str(tmp_path / "out"), *sizes.split()], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    pipe = FluxPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert {part.dtype for part in pipe.components.values() if isinstance(part, torch.nn.Module)} == {torch.float32}
    asked = {"height": 16, "width": 64, "num_inference_steps": 1, "max_sequence_length": TEXT_TOKENS}
    assert pipe(prompt("MOON"), **asked).images[0].size == (64, 16)
