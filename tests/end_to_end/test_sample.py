"""`flowfactory sample`: any prompt, by the trained weights and by the base, as diffusers makes it from that noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from flowfactory.cli.main import main
from flowfactory.contracts.seeds import Draws
from flowfactory.runs.media import to_bytes
from PIL import Image
from trained import FULL, LORA, STEPS, Trained, train

PROMPTS = ["a dog", "two cats"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    return lambda tuning: train(tmp_path_factory.mktemp("run"), "sd3", tuning)


def pixels(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file))).int()


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_it_shows_what_diffusers_makes_of_both(
    tuning: str, runs: Callable[[str], Trained], capsys: pytest.CaptureFixture[str]
) -> None:
    made = runs(tuning)
    exported = made.export()
    assert main(["sample", str(made.folder), *PROMPTS, "--negative", "blurry", "--count", "2"]) == 0
    sheet = Path(capsys.readouterr().out.strip())
    assert sheet == made.folder / "sampled/sheet.png"
    listed = [json.loads(line) for line in (sheet.parent / "trained/samples.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["replica"]) for line in listed] == [(p, r) for p in PROMPTS for r in range(2)]
    base = DiffusionPipeline.from_pretrained(made.folder / "model")
    after = DiffusionPipeline.from_pretrained(made.folder / "model" if tuning == LORA else exported.folder)
    if tuning == LORA:
        after.load_lora_weights(exported.folder)
    size, shape = made.family.size, made.adapter.latent_shape(made.family.size)
    for name, pipe in (("base", base), ("trained", after)):
        pipe.set_progress_bar_config(disable=True)
        for number in range(4):
            (media,) = pipe(
                PROMPTS[number // 2],
                negative_prompt="blurry",
                height=size.height,
                width=size.width,
                latents=Draws([(0, "sample", number // 2, number % 2)]).normal(*shape),
                num_inference_steps=STEPS,
                guidance_scale=made.family.guidance,
                max_sequence_length=made.family.max_sequence_length,
                output_type="pt",
                return_dict=False,
            )
            theirs = to_bytes(media[0]).permute(1, 2, 0).int()
            assert (pixels(sheet.parent / name / f"{number:04d}.png") - theirs).abs().max() <= 1
    differences = (pixels(sheet.parent / "base/0000.png") - pixels(sheet.parent / "trained/0000.png")).abs()
    assert differences.max() > 1


def test_nothing_is_written_over_and_the_seed_decides(
    runs: Callable[[str], Trained], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = runs(LORA).folder
    (tmp_path / "prompts.txt").write_text("a dog\n")
    for options in (["a dog"], ["--prompts", str(tmp_path / "prompts.txt")], ["a dog", "--seed", "1"]):
        assert main(["sample", str(folder), *options]) == 0
    first, second, third = (
        pixels(folder / name / "trained/0000.png") for name in ("sampled", "sampled-2", "sampled-3")
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    capsys.readouterr()
    assert main(["sample", str(folder), "a dog", "--to", str(folder / "sampled")]) == 2
    assert "sampled is not empty" in capsys.readouterr().err


def test_what_cannot_be_sampled_is_said_and_leaves_nothing(
    runs: Callable[[str], Trained], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = runs(LORA).folder
    for options, code, said in (
        ([], 2, "there is nothing to sample: give a PROMPT, or a file of them with --prompts"),
        (["a dog", "--image", "no.png"], 2, "there is no image no.png"),
        (["a dog", "--epoch", "9"], 1, "has no checkpoint epoch-0009; there is epoch-0003"),
        (["a dog", "--weights", "best"], 1, "has no weights 'best'; there are current, ema"),
        (["a dog", "--base", str(tmp_path)], 1, "cannot be sampled from"),
        (["--prompts", str(tmp_path / "none.txt")], 2, "none.txt"),
    ):
        assert main(["sample", str(folder), *options]) == code, options
        assert said in " ".join(capsys.readouterr().err.split())
    assert not list(folder.glob("sampled*"))
    assert main(["sample", str(tmp_path), "a dog"]) == 2
