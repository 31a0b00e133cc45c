"""Rendered words, read by the real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.spec.structure import load_spec
from flowfactory_plugin_ocr import OCRSpec
from flowfactory_plugin_ocr.ocr import OCR, blue_first
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ENGINES: dict[str, Any] = {}
PROMPT = 'a poster that says "FLOW 2026"'


def shared(key: str, factory: Any) -> Any:
    """One engine for all tests."""
    if key not in ENGINES:
        ENGINES[key] = factory()
    return ENGINES[key]


def reward(**keys: Any) -> OCR:
    made = OCR(OCRSpec(threads=1, **keys))
    made.load(torch.device("cpu"), torch.float32, shared)
    return made


def drawn(*lines: str, ink: str = "black", paper: str = "white") -> Tensor:
    """An image `(3, 128, 256)` with lines of text."""
    picture = Image.new("RGB", (256, 128), paper)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(36)
    for number, line in enumerate(lines):
        draw.text((16, 12 + 52 * number), line, fill=ink, font=font)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def sample(media: Tensor, prompt: str = PROMPT) -> Sample:
    return Sample(Row(prompt), media, 0, 0)


def test_rendered_words_score_1_and_a_blank_image_0() -> None:
    assert reward().score([sample(drawn("FLOW 2026")), sample(drawn())]) == [1.0, 0.0]


def test_words_over_two_lines_and_in_colour_are_read() -> None:
    assert reward().score([sample(drawn("FLOW", "2026", ink="navy", paper="khaki"))]) == [1.0]


def test_other_words_score_between() -> None:
    (score,) = reward().score([sample(drawn("FLOW 2019"))])
    assert score == pytest.approx(1 - 2 / 8)


def test_a_prompt_that_quotes_nothing_does_not_apply() -> None:
    assert reward().score([sample(drawn("FLOW 2026"), "a poster")]) == [None]


@pytest.mark.parametrize(("pool", "expected"), [("mean", 0.5), ("min", 0.0), ("max", 1.0)])
def test_a_video_pools_its_frames(pool: str, expected: float) -> None:
    video = torch.stack([drawn("FLOW 2026"), drawn("noise"), drawn(), drawn("x")])
    assert reward(frames=2, pool=pool).score([sample(video)]) == [expected]


def test_lines_below_the_confidence_are_not_read() -> None:
    assert reward(confidence=1.0).read(drawn("FLOW 2026")) == ""
    assert reward(confidence=0.5).read(drawn("FLOW 2026")) == "FLOW 2026"


def test_a_word_that_fills_its_image_is_read_as_one_line() -> None:
    narrow = drawn("FLOW 2026")[:, 12:56, 8:200]
    assert reward(detect=False).score([sample(narrow), sample(torch.ones_like(narrow))]) == [1.0, 0.0]


def test_colours_are_handed_over_in_opencvs_order() -> None:
    image = torch.zeros(3, 2, 2)
    image[0] = 1.0
    assert blue_first(image)[0, 0].tolist() == [0, 0, 255]


def test_the_example_is_a_sound_spec() -> None:
    spec = load_spec(Path(__file__).parents[1] / "examples" / "ocr.toml", Registry())
    assert isinstance(spec.rewards[0].spec, OCRSpec)
