"""Whole runs on a tiny FLUX checkpoint, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flowfactory.cli.main import main
from flowfactory_plugin_flux.flux import Flux

REWARDS = """
import attrs

from flowfactory import DifferentiableReward, DifferentiableSpec, NoKeys, Provides, hookimpl


def redness(samples):
    return [float(s.media[0].mean() - s.media[1:].mean()) for s in samples]


@attrs.frozen(kw_only=True)
class BluenessSpec(DifferentiableSpec):
    pass


class Blueness(DifferentiableReward):
    # Of an image, or of a video's frames together.
    def value(self, media, rows):
        channels = media.movedim(-3, 1).flatten(2).mean(2)
        return channels[:, 2] - channels[:, :2].mean(1)


@hookimpl
def flowfactory_rewards():
    yield Provides("redness", NoKeys, redness, "How red an image is.")
    yield Provides("blueness", BluenessSpec, Blueness, "How blue it is, with a gradient.")
"""

MEASURED = ("time/", "network/seconds", "memory/")

SPEC = """
plugins = ["./rewards.py"]

[run]
name = "tiny"
epochs = 2

[model]
name = "flux"
path = "{checkpoint}"
max_sequence_length = 16

[full]

[data]
prompts = "train.txt"
eval_prompts = "eval.txt"

[sampling]
size = 32
steps = 4
prompts = 4
group = 3
micro_batch = 6

[scheduler]
name = "flow-sde"
window = {{ rule = "random", size = 2 }}

[trainer]
name = "grpo"

[[reward]]
name = "redness"

[optimizer]
lr = 1e-3
updates = 2
micro_batch = 6

[eval]
every = 1
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Flux.tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def spec(tmp_path: Path, checkpoint: Path) -> Path:
    return written(tmp_path, checkpoint)


def written(folder: Path, checkpoint: Path) -> Path:
    """A spec and what it names."""
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "train.txt").write_text("a cat\na dog\na bird\na fish\na horse\na cow\n")
    (folder / "eval.txt").write_text("a tree\na house\na lake\n")
    (folder / "spec.toml").write_text(SPEC.format(checkpoint=checkpoint))
    return folder / "spec.toml"


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state per process; every run here brings its own precision."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def run(spec: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the spec with changes, `key=value` to set and `-key` to unset; returns the run's folder."""

    def run(name: str, *changes: str) -> Path:
        folder = tmp_path / "runs" / name
        options = [f"--unset={c[1:]}" if c.startswith("-") else f"--set={c}" for c in changes]
        assert main(["run", str(spec), "--folder", str(folder), *options]) == 0
        return folder

    return run


def metrics(folder: Path, times: bool = False) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without seconds and bytes unless wanted."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if times or not k.startswith(MEASURED)} for line in lines]
