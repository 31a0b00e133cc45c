"""The reward: 1 for the world's own pictures, less for other words, for other letters, and for what is no text."""

import numpy as np
import torch
from flowfactory import Row, Sample
from flowfactory_plugin_glyphs import GlyphsSpec
from flowfactory_plugin_glyphs.rewards import Glyphs
from flowfactory_plugin_glyphs.writing import prompt, render
from numpy.typing import NDArray


def score(word: str, image: NDArray[np.float32]) -> float:
    sample = Sample(Row(prompt(word)), torch.from_numpy(image).permute(2, 0, 1), 0, 0)
    (value,) = Glyphs(GlyphsSpec()).score([sample])
    assert value is not None
    return value


def test_the_worlds_own_pictures_score_almost_1() -> None:
    rng = np.random.default_rng(0)
    assert min(score(word, render(word, rng)) for word in ("CAT", "MOON", "QUIZ") for _ in range(10)) > 0.95


def test_what_is_wrong_costs() -> None:
    rng = np.random.default_rng(0)
    right, near, other = (
        np.mean([score("MOON", render(word, rng)) for _ in range(10)]) for word in ("MOON", "MOOD", "CAT")
    )
    assert other < near < right
    struck = render("MOON", rng)
    struck[7:9] = 0.1
    assert score("MOON", struck) < 0.8


def test_what_is_no_text_scores_little() -> None:
    rng = np.random.default_rng(0)
    assert score("MOON", rng.random((16, 64, 3)).astype(np.float32)) < 0.3
    assert score("MOON", np.full((16, 64, 3), 0.5, np.float32)) == 0.0


def test_a_larger_image_of_the_word_scores_like_the_small_one() -> None:
    image = render("MOON", np.random.default_rng(0))
    assert score("MOON", image.repeat(4, axis=0).repeat(4, axis=1)) > 0.95
    assert score("CAT", image.repeat(4, axis=0).repeat(4, axis=1)) < 0.6
