"""The plugin directory knows every first-party plugin, and is asked about unknown names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from flowfactory.discovery.entries import KINDS, Entry, Source
from flowfactory.discovery.registry import Registry
from flowfactory.errors import PluginError
from flowfactory.names import directory
from packaging.requirements import Requirement

KNOWN = {*KINDS, "commands"}
PLUGINS = sorted((Path(__file__).parents[3] / "plugins").glob("*/pyproject.toml"))


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.parent.name)
def test_first_party_plugins_are_listed(path: Path) -> None:
    project = tomllib.loads(path.read_text())["project"]
    for group, points in project.get("entry-points", {}).items():  # the host of scorers is no plugin
        kind = group.removeprefix("flowfactory.")
        if kind in KNOWN:
            for name in points:
                assert directory.distribution_of(kind, name) == project["name"], f"{kind} {name}"


def test_a_listing_is_sound() -> None:
    for listing in directory.listings():
        assert listing.names.keys() <= KNOWN
        assert listing.summary.endswith(".")
    for kind in KNOWN:
        assert len(directory.names(kind)) == len(set(directory.names(kind)))


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("trainers", "grpo-guard", "(there is: none); try: pip install flowfactory-plugin-grpo"),
        ("trainers", "gpro-guard", "did you mean `grpo-guard`?"),
        ("trainers", "flow-grpo", "here it is called `grpo`; try: pip install flowfactory-plugin-grpo"),
        ("trainers", "Flow_GRPO", "here it is called `grpo`; try: pip install flowfactory-plugin-grpo"),
        ("adapters", "sd3", "here it is called `diffusers`"),
        ("schedulers", "euler", "here it is called `ode`"),
        ("rewards", "PickScore", "did you mean `pickscore`?"),
        ("rewards", "hpsv2", "here it is called `hps`"),
        ("rewards", "sandbox", "a reward of your own is a file (`flowfactory new reward`)"),
        ("rewards", "zebra", "no plugin of that name is known; see: flowfactory plugins list"),
        ("trainers", "dapo", "here it is called `grpo`; its filter is [sampling] refill"),
        ("trainers", "dance_grpo", "here it is called `grpo`; its noise is that of scheduler `dance-sde`"),
        ("rewards", "zebra; rm -r ~", "no plugin of that name is known; see: flowfactory plugins list"),
    ],
)
def test_an_unknown_name_says_what_is_meant_and_what_the_directory_brings(kind: str, name: str, hint: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry([]).find(kind, name)
    assert hint in str(caught.value)
    offered = re.findall(r"pip install (\S+)", str(caught.value))
    assert set(offered) <= {listing.distribution for listing in directory.listings()}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("grpo-guard", "no plugin `grpo-guard` is installed; try: pip install flowfactory-plugin-grpo"),
        ("gpro-guard", "no plugin `gpro-guard` is installed; did you mean `grpo-guard`?"),
        ("flowfactory-plugin-x", "no plugin of that name is known"),
    ],
)
def test_so_does_a_name_of_no_kind_in_particular(name: str, hint: str) -> None:
    with pytest.raises(PluginError) as caught:
        Registry([]).named(name)
    assert hint in str(caught.value)
    assert f"pip install flowfactory-plugin-{name}" not in str(caught.value)


def test_a_distributions_name_means_all_it_provides() -> None:
    source = Source("flowfactory-plugin-a", "1")
    entries = [Entry(kind, name, "a", source) for kind, name in (("rewards", "one"), ("trainers", "two"))]
    assert Registry(entries).named("flowfactory_plugin_A") == entries


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flowfactory>=99", "try: pip install --upgrade 'flowfactory>=99'"),
        ("flowfactory-plugin-grpo>=1; python_version > '3'", "pip install --upgrade 'flowfactory-plugin-grpo>=1'"),
        ("x-evil @ https://evil/x.whl", "find out whose it is before you install it"),
        ("flowfactory-plugin-grpo @ https://evil/x.whl", "find out whose it is before you install it"),
        ("flowfactory-plugin-hpsv2", "find out whose it is before you install it"),
    ],
)
def test_only_what_is_listed_is_offered_for_installation(text: str, said: str) -> None:
    advice = directory.requirement_advice(Requirement(text), upgrade=True)
    assert said in advice
    assert "evil" not in advice


@pytest.mark.parametrize(
    ("kind", "word", "said"),
    [
        ("adapters", "FluxPipeline", "did you mean `flux`?"),
        ("adapters", "StableDiffusion3Pipeline", "here it is called `diffusers`"),
        ("adapters", "WanImageToVideoPipeline", "here it is called `wan-i2v`"),
        ("trainers", "GRPOTrainer", "did you mean `grpo`?"),
        ("trainers", "DPOConfig", "did you mean `dpo`?"),
        ("schedulers", "DPMSolverMultistepScheduler", "here it is called `dpm-solver`"),
        ("rewards", "AestheticScorer", "did you mean `aesthetic`?"),
        ("rewards", "PickScoreReward", "here it is called `pickscore`"),
        ("trainers", "Trainer", "no plugin of that name is known"),
    ],
)
def test_classes_of_other_libraries_mean_what_they_are_of(kind: str, word: str, said: str) -> None:
    with pytest.raises(PluginError, match=re.escape(said)):
        Registry().find(kind, word)
