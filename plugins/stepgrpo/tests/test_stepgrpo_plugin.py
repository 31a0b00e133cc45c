"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory_plugin_stepgrpo import Turning
from flowfactory_plugin_stepgrpo.stepgrpo import StepGRPO
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    trainer, sampling = spec.trainer.spec, spec.sampling
    assert (spec.run.name, spec.trainer.name) == (path.stem, "stepgrpo")
    assert (sampling.prompts, sampling.group, spec.optimizer.lr) == (48, 24, 3e-4)
    assert (trainer.std, trainer.kl_beta, trainer.clip_low) == ("group", 0, trainer.clip_high)


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "stepgrpo") is StepGRPO


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_stepgrpo; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# steps, guidance, eta, clip
PUBLISHED = {"tp-grpo-sd35": (10, 4.5, 0.7, 1e-5), "tp-grpo-flux": (6, 3.5, 0.8, 1e-5)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_the_published_numbers(name: str) -> None:
    spec = example(name)
    found = (spec.sampling.steps, spec.sampling.guidance, spec.scheduler.spec.eta, spec.trainer.spec.clip_high)
    assert found == PUBLISHED[name]
    assert spec.scheduler.name == "cps"
    assert spec.trainer.spec.turning == Turning(points="towards", main="whole")
    assert spec.trainer.spec.looks == "completed"


def test_the_others_differ_in_what_is_looked_at() -> None:
    looks = {name: example(name).trainer.spec.looks for name in ("dense-grpo-sd35", "stepwise-flow-grpo-sd35")}
    assert looks == {"dense-grpo-sd35": "completed", "stepwise-flow-grpo-sd35": "estimated"}
