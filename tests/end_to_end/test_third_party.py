"""What is published is enough: wheels in an empty environment elsewhere, plugins of strangers among them, and a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from flowfactory.cli.baking import bake
from outside import ROOT, Environment, build_wheel

SPEC = """
requires = ["flowfactory-plugin-warmth", "flowfactory-plugin-gentle>=0.1"]

[run]
name = "together"
epochs = 2
save_samples = 4

[model]
name = "flux"
path = "flowfactory_plugin_shapes:checkpoint"
max_sequence_length = 16

[lora]
rank = 4

[data]
prompts = "prompts.txt"

[sampling]
size = 32
steps = 4
prompts = 2
group = 4

[scheduler]
name = "flow-sde"

[trainer]
name = "gentle"
kl_beta = 0.1

[[reward]]
name = "warmth"
colour = [1.0, 0.5, 0.0]

[[reward]]
name = "shapes"

[[reward]]
name = "clip"
path = "./clip"
weight = 0.1

[optimizer]
lr = 1e-3

[eval]
every = 0
"""
WRITE_CLIP = "from pathlib import Path; from flowfactory_plugin_clip.tiny import tiny_clip; tiny_clip(Path('clip'))"
OURS = {"flowfactory", "flowfactory-plugin-flux", "flowfactory-plugin-shapes", "flowfactory-plugin-clip"}
THEIRS = {"flowfactory-plugin-warmth", "flowfactory-plugin-gentle"}


@pytest.fixture(scope="module")
def elsewhere(wheels: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """An environment with core, three plugins of ours, and two of strangers."""
    folder = tmp_path_factory.mktemp("elsewhere")
    strangers = [bake(kind, name, {}, folder) for kind, name in (("reward", "warmth"), ("trainer", "gentle"))]
    environment = Environment(folder / "venv")
    ours = [wheels[name] for name in ("core", "flux", "shapes", "clip")]
    environment.install(*ours, *(build_wheel(project, folder) for project in strangers))
    yield environment
    environment.close()


def test_nothing_of_the_repository_is_seen(elsewhere: Environment, tmp_path: Path) -> None:
    found = json.loads(elsewhere.run("flowfactory", "plugins", "list", "--json", cwd=tmp_path))
    assert {row["distribution"] for row in found} == OURS | THEIRS
    where = elsewhere.run("python", "-c", "import flowfactory; print(flowfactory.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(elsewhere.folder)
    assert str(ROOT) not in elsewhere.run("python", "-c", "import sys; print(sys.path)", cwd=tmp_path)


def test_a_run_combines_everybodys_plugins(elsewhere: Environment, tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "prompts.txt").write_text("a red circle\na yellow square\n")
    elsewhere.run_warm("python", "-c", WRITE_CLIP, cwd=tmp_path)
    elsewhere.run("flowfactory", "check", "spec.toml", cwd=tmp_path)
    elsewhere.run_warm("flowfactory", "run", "spec.toml", cwd=tmp_path)
    folder = tmp_path / "runs" / "together"
    first, last = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[-2:])
    assert first["train/ratio"] == 1
    assert {name.removeprefix("loss/") for name in last if name.startswith("loss/")} == {"policy", "kl"}
    assert {"reward/warmth/mean", "reward/shapes/mean", "reward/clip/mean"} <= set(last)
    assert set(json.loads((folder / "plan.json").read_text())["versions"]) == OURS | THEIRS
    assert list((folder / "checkpoints").iterdir())


def test_examples_come_along(elsewhere: Environment, tmp_path: Path) -> None:
    """Those of ours and of strangers: listed, checked where they lie, and copied."""
    found = json.loads(elsewhere.run("flowfactory", "examples", "--json", cwd=tmp_path))
    addresses = {example["name"]: example["address"] for example in found}
    assert {"clip", "flux-dev-grpo", "warmth", "gentle"} <= set(addresses)
    elsewhere.run("flowfactory", "examples", "copy", "flux-kontext-grpo", "--to", "mine", cwd=tmp_path)
    copied = {path.name for path in (tmp_path / "mine").iterdir()}
    assert {"flux-kontext-grpo.toml", "flux-dev-grpo.toml", "edits.jsonl", "circle.png"} <= copied
    elsewhere.run("flowfactory", "check", addresses["gentle"], cwd=tmp_path)


def test_new_plugins_can_be_made_there(elsewhere: Environment, tmp_path: Path) -> None:
    elsewhere.run("flowfactory", "new", "scheduler", "from-a-wheel", cwd=tmp_path)
    assert (tmp_path / "flowfactory-plugin-from-a-wheel" / "pyproject.toml").is_file()
