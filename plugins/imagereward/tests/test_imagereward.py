"""The scorer in a process of its own, with a stand-in for the authors' package, which cannot be installed here."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.spec.structure import load_spec
from flowfactory_plugin_imagereward import ImageRewardSpec
from flowfactory_plugin_isolated.environments import host_wheel
from flowfactory_plugin_isolated.process import Keeper
from packaging.requirements import Requirement

STAND_IN = """
    class Model:
        def score(self, prompt, image):
            return image.convert("L").getpixel((0, 0)) / 255 + len(prompt)

    def load(name, device):
        assert (name, device) == ("ImageReward-v1.0", "cpu")
        return Model()
"""


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    """The scorer as a run starts it, beside a package of the authors' name."""
    folder = tmp_path_factory.mktemp("scorer")
    file, _, function = ImageRewardSpec().score.rpartition(":")
    (folder / "scorer.py").write_text(Path(file).read_text())
    (folder / "ImageReward.py").write_text(textwrap.dedent(STAND_IN))
    made = Keeper(Path(sys.executable), host_wheel(), f"{folder / 'scorer.py'}:{function}", "cpu", 120.0, 60.0, 0)
    yield made
    assert made._running is not None
    made._running.end()


def test_every_sample_is_asked_about_with_its_own_prompt(keeper: Keeper) -> None:
    samples = [Sample(Row(prompt), torch.full((3, 4, 4), level), 0, 0) for prompt, level in (("ab", 1.0), ("abc", 0.0))]
    assert keeper.score(samples) == pytest.approx([3.0, 3.0])


def test_a_video_is_the_mean_of_its_frames(keeper: Keeper) -> None:
    video = torch.stack([torch.full((3, 4, 4), level) for level in (0.0, 1.0)])
    assert keeper.score([Sample(Row("ab"), video, 0, 0)]) == pytest.approx([2.5])


def test_its_environment_is_pinned() -> None:
    spec = ImageRewardSpec()
    assert spec.python == "3.10"
    assert all(Requirement(text).specifier for text in spec.requirements)
    assert Registry().target("rewards", "imagereward").__name__ == "Isolated"


def test_the_example_is_a_sound_spec() -> None:
    spec = load_spec(Path(__file__).parents[1] / "examples" / "imagereward.toml", Registry())
    assert isinstance(spec.rewards[0].spec, ImageRewardSpec)
