"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.spec.tables import Lora
from flowfactory_plugin_dppo.dppo import DPPO
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert (spec.trainer.name, spec.trainer.spec.delta) == ("dppo", 1e-5)


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "dppo") is DPPO


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_dppo; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# guidance, eta, prompts, window, rank, weight decay
PUBLISHED = {
    "dppo-sd35-pickscore": (1.0, 0.7, 48, 3, 32, 0.0),
    "dppo-qwen-image-ocr": (4.0, 1.2, 32, 2, 64, 1e-4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_the_published_numbers(name: str) -> None:
    spec = example(name)
    sampling, scheduler, tuning = spec.sampling, spec.scheduler.spec, spec.tuning
    assert isinstance(tuning, Lora)
    found = (sampling.guidance, scheduler.eta, sampling.prompts, scheduler.window.size, tuning.rank)
    assert (*found, spec.optimizer.weight_decay) == PUBLISHED[name]
    assert (sampling.steps, sampling.group, spec.optimizer.lr, spec.optimizer.updates) == (10, 16, 3e-4, 2)
