"""The reward with a gradient: what it says of the world's own pictures, and where its gradient leads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flowfactory.contracts.types import Row
from flowfactory_plugin_shapes.colours import Colours, wanted
from flowfactory_plugin_shapes.world import COLOURS, parse, prompts, render
from torch import Tensor

REWARD = Colours(None)


def pictures(texts: list[str]) -> Tensor:
    return torch.stack(
        [torch.from_numpy(render(parse(t), np.random.default_rng(i))) for i, t in enumerate(texts)]
    ).permute(0, 3, 1, 2)


def values(texts: list[str], shown: list[str]) -> Tensor:
    return REWARD.value(pictures(shown), [Row(text) for text in texts])


def test_the_worlds_own_pictures_are_right() -> None:
    texts = prompts("eval")
    assert float(values(texts, texts).min()) > 0.95  # what pixels between two colours cost


def test_what_is_wrong_costs() -> None:
    asked = "a red circle"
    shown = ["a red circle", "a red square", "two red circles", "a blue circle", "a red circle and a blue circle"]
    found = values([asked] * 5, shown).tolist()
    assert found[0] == pytest.approx(1, abs=0.02)
    assert found[1] == pytest.approx(1, abs=0.02)  # shapes do not count
    assert 0.9 < found[2] < 0.97  # two have less paint together
    assert found[3] < 0.02
    assert 0.25 < found[4] < 0.4


def test_a_blank_image_and_one_of_one_colour_are_wrong() -> None:
    blank = torch.full((1, 3, 32, 32), 0.94)
    red = torch.tensor(COLOURS["red"]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    for image, most in ((blank, 0.02), (red, 0.3)):
        assert float(REWARD.value(image, [Row("a red circle")])) < most


def test_the_gradient_leads_from_a_wrong_colour_to_the_right_one() -> None:
    """A purple circle with a little red in it becomes red, by following nothing but the gradient."""
    purple, red = pictures(["a purple circle"]), pictures(["a red circle"])
    x, rows = 0.7 * purple + 0.3 * red, [Row("a red circle")]
    assert float(REWARD.value(x, rows)) < 0.1
    for _ in range(30):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(REWARD.value(x, rows).sum(), x)
        x = (x + 10 * slope).detach().clamp(0, 1)
    assert float(REWARD.value(x, rows)) > 0.95


def test_larger_images_are_averaged_over_blocks() -> None:
    image, rows = pictures(["two cyan triangles"]), [Row("two cyan triangles")]
    larger = image.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(REWARD.value(larger, rows), REWARD.value(image, rows))


@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (1, 3, 48, 48), (1, 5, 3, 32, 32)])
def test_images_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square images of 32, 64"):
        REWARD.value(torch.zeros(shape), [Row("a red circle")])


def test_amounts_are_those_of_the_world() -> None:
    least, most = wanted("two blue squares")
    assert [round(x) for x in least] == [0, 0, 127, 0, 0, 0]
    assert [round(x) for x in most] == [0, 0, 157, 0, 0, 0]
