"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.spec.tables import Lora
from flowfactory_plugin_dpo import PRETRAINING
from flowfactory_plugin_dpo.dpo import DPO
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert spec.run.name.startswith(spec.trainer.name)
    assert spec.trainer.spec.guidance == 1
    assert spec.trainer.spec.times == PRETRAINING


def test_both_names_have_one_target() -> None:
    registry = Registry(installed_entries())
    assert registry.target("trainers", "dpo") is registry.target("trainers", "diffusion-dpo") is DPO


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_dpo; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# steps, guidance of sampling, prompts or pairs, group, rank, learning rate, updates
PUBLISHED = {
    "dpo-qwen-image-ocr": (35, 1.0, 32, 16, 64, 3e-4, 2),
    "diffusion-dpo-sd35": (28, 4.0, 16, 1, 32, 2e-4, 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_the_published_numbers(name: str) -> None:
    spec = example(name)
    sampling, tuning = spec.sampling, spec.tuning
    assert isinstance(tuning, Lora)
    found = (sampling.steps, sampling.guidance, sampling.prompts, sampling.group, tuning.rank)
    assert (*found, spec.optimizer.lr, spec.optimizer.updates) == PUBLISHED[name]
    assert (spec.trainer.spec.beta, spec.optimizer.weight_decay, tuning.alpha) == (100, 1e-4, 2 * tuning.rank)
