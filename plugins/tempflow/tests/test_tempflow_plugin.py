"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory_plugin_tempflow.tempflow import TempFlow
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)

# steps, eta
PUBLISHED = {"tempflow-grpo-branches-sd35": (10, 0.7), "tempflow-grpo-branches-flux": (6, 0.9)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_carry_the_published_numbers(path: Path) -> None:
    spec = example(path.stem)
    trainer = spec.trainer.spec
    assert (spec.run.name, spec.trainer.name) == (path.stem, "tempflow")
    assert (spec.sampling.group, trainer.width, trainer.noise_weight, trainer.std) == (4, 6, 2.25, "group")
    assert 0.001 <= trainer.kl_beta <= 0.004
    assert trainer.kl == "exact"
    assert (spec.sampling.steps, spec.scheduler.spec.eta) == PUBLISHED[path.stem]


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "tempflow") is TempFlow


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_tempflow; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
