"""What was published and has no plugin is one local file, without a change in core; and it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory.cli.main import main

SPEC = """
plugins = ["{plugin}"]

[run]
name = "published"
epochs = 3

[model]
name = "flux"
path = "flowfactory_plugin_shapes:checkpoint"
max_sequence_length = 16

[full]

[data]
prompts = "flowfactory_plugin_shapes:prompts/train.txt"

[sampling]
size = 32
steps = 1
prompts = 8
group = 6
micro_batch = 48

[scheduler]
name = "ode"

[trainer]
name = "surrogate"

[[reward]]
name = "redness"

[optimizer]
lr = 3e-4
micro_batch = 48

[checkpoint]
every = 0
"""
PLUGIN = Path(__file__).with_name("published.py")
Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    (tmp_path / "spec.toml").write_text(SPEC.format(plugin=PLUGIN))

    def train(name: str, *changes: str) -> Path:
        options = [f"--unset={c[1:]}" if c.startswith("-") else f"--set={c}" for c in changes]
        assert main(["run", str(tmp_path / "spec.toml"), "--folder", str(tmp_path / name), *options]) == 0
        return tmp_path / name

    return train


def test_a_reward_that_is_learned_leads_the_student(train: Train) -> None:
    """TDM-R1: the reward has no gradient; in three epochs it doubles, and without the surrogate it does not rise."""
    led, left = (metrics(train(f"weight-{w}", f"trainer.weight={w}"))[1:] for w in (1, 0))
    rise = [lines[-1]["reward/redness/mean"] - lines[0]["reward/redness/mean"] for lines in (led, left)]
    assert rise[0] > 0.03
    assert rise[1] < 0.01


def test_a_discriminator_leads_the_student_to_the_data(train: Train) -> None:
    """DMD2: the critic learns to tell pictures of the data from the student's, unless the student learns from it."""
    changes = ("-reward", "-sampling.group", "sampling.prompts=24", "optimizer.lr=1e-4", "run.epochs=3")
    data = "data.prompts=flowfactory_plugin_shapes:prompts/demonstrations.jsonl"
    alone, fooled = (
        metrics(train(f"weight-{weight}", f"trainer={{name='adversarial', weight={weight}}}", data, *changes))[-1]
        for weight in (0, 1)
    )
    assert alone["train/margin"] > 1
    assert fooled["train/margin"] < alone["train/margin"] / 2
    assert fooled["loss/critic"] > alone["loss/critic"]


def test_noise_may_be_fitted_to_each_step_by_how_often_it_gains(train: Train) -> None:
    """DenseGRPO: how often a step gained is a metric, and each noise level has a factor of its own."""
    dense = ("trainer.name=dense", "run.epochs=1", "sampling.steps=4", "sampling.prompts=4")
    loud, quiet = (
        metrics(train(f"etas-{last}", *dense, f"scheduler={{name='fitted', etas=[0.7, {last}]}}"))[-1]
        for last in (0.7, 0.1)
    )
    shares = [[line[f"train/gained_{step}"] for step in range(3)] for line in (loud, quiet)]
    assert all(0 < share < 1 for line in shares for share in line)
    assert shares[0] != shares[1]
    assert loud["train/gradient_norm"] > 0
