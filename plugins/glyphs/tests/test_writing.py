"""The world: sentences and words are the same thing, images show the whole word, no word is in both splits."""

from importlib.resources import files

import numpy as np
import pytest
from flowfactory_plugin_glyphs.architecture import build
from flowfactory_plugin_glyphs.writing import HEIGHT, POINTS, WIDTH, asked, ink, prompt, render, spell


def prompts(split: str) -> list[str]:
    return (files("flowfactory_plugin_glyphs") / "prompts" / f"{split}.txt").read_text(encoding="utf-8").splitlines()


def test_a_prompt_is_a_word_and_back() -> None:
    rng = np.random.default_rng(0)
    assert prompt("MOON") == 'a sign that says "MOON"'
    for word in (spell(rng) for _ in range(100)):
        assert asked(prompt(word)) == word


@pytest.mark.parametrize("text", ["", "MOON", 'a sign that says "moon"', 'a sign that says "NO"', 'a sign: "MOON"'])
def test_other_sentences_are_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no prompt of the glyphs world"):
        asked(text)


def test_no_word_is_in_both_splits() -> None:
    train, held_out = ({asked(text) for text in prompts(split)} for split in ("train", "eval"))
    assert len(train) == 70
    assert len(held_out) == 36
    assert not train & held_out


def test_every_prompt_fits_and_every_letter_is_a_token() -> None:
    pipe = build()
    for text in {*prompts("train"), *prompts("eval"), prompt("QXJV")}:
        clip, t5 = (tokenizer(text).input_ids for tokenizer in (pipe.tokenizer, pipe.tokenizer_2))
        assert len(clip) <= pipe.tokenizer.model_max_length
        assert len(t5) <= pipe.tokenizer_2.model_max_length
        spelt = [token.removesuffix("</w>") for token in pipe.tokenizer.convert_ids_to_tokens(clip)]
        assert "".join(spelt[1:-1]) == text.replace(" ", "").lower()
        assert pipe.tokenizer_2.convert_ids_to_tokens(t5)[5:-2] == list(asked(text))


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("place", [(-1.0, -0.5), (0.0, 0.0), (1.0, 0.5)])
def test_no_letter_is_cut(points: int, place: tuple[float, float]) -> None:
    """Wherever a word stands, it has as much ink as in the middle of the image."""
    for word in ("WAVE", "QUIZ", "EYE"):
        page = ink(word, points, *place)
        assert page.shape == (HEIGHT, WIDTH)
        assert page.sum() == pytest.approx(ink(word, points).sum(), rel=0.05)


def test_an_image_shows_its_word_near_the_middle_and_darker_than_the_paper() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        image = render("MOON", rng)
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image[0, 0].min() > 0.85  # paper
        dark = 1 - image.mean(axis=2)
        columns = (dark - dark.min()).sum(axis=0)
        assert abs((columns * np.arange(WIDTH)).sum() / columns.sum() - (WIDTH - 1) / 2) < 4
