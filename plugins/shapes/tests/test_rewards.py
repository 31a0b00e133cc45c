"""The two rewards: the grades of `scoring`, for the samples core hands out."""

import subprocess
import sys
from importlib.metadata import entry_points

import flowfactory_plugin_shapes as plugin
import numpy as np
import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory_plugin_shapes.rewards import Shapes, ShapesCorrect, pixels
from flowfactory_plugin_shapes.world import parse, render
from torch import Tensor


def media(prompt: str) -> Tensor:
    return torch.from_numpy(render(parse(prompt), np.random.default_rng(0))).permute(2, 0, 1)


def samples(prompt: str, *drawn: str) -> list[Sample]:
    return [Sample(Row(prompt), media(other), 0, replica) for replica, other in enumerate(drawn)]


def test_scores_follow_the_order_of_the_samples() -> None:
    batch = samples("a red circle", "a red circle", "a blue circle", "a blue triangle")
    graded, correct = (reward(plugin.ShapesSpec()).score(batch) for reward in (Shapes, ShapesCorrect))
    assert graded == pytest.approx([1.0, 0.5, 0.0], abs=0.1)
    assert correct == [1.0, 0.0, 0.0]


def test_larger_images_are_averaged_over_blocks() -> None:
    image = media("two cyan triangles")
    larger = image.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert np.allclose(pixels(larger), pixels(image), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 32, 64), (3, 48, 48), (5, 3, 32, 32)])
def test_images_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square images of 32, 64"):
        pixels(torch.zeros(shape))


def test_the_hook_names_what_the_entry_points_name() -> None:
    provided = {reward.name: reward.target for reward in plugin.flowfactory_rewards()}
    registered = {e.name for e in entry_points(group="flowfactory.rewards") if e.value == plugin.__name__}
    assert set(provided) == registered == {"shapes", "shapes-colours", "shapes-correct"}


def test_the_hook_module_imports_nothing_heavy() -> None:
    code = "import sys, flowfactory_plugin_shapes as p; list(p.flowfactory_rewards()); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "diffusers", "transformers", "scipy"} & set(loaded)
