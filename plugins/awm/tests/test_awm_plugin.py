"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.contracts.specs import Decay, Times
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory_plugin_awm.awm import AWM
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)
KL = {"awm-sd35-pickscore": 1e-4, "awm-sd35-ocr": 3e-3, "awm-flux": 1e-3}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_carry_the_published_numbers(path: Path) -> None:
    spec = example(path.stem)
    trainer = spec.trainer.spec
    assert spec.run.name == path.stem
    assert (spec.sampling.steps, spec.sampling.group, spec.optimizer.lr, spec.optimizer.updates) == (14, 24, 3e-4, 1)
    assert trainer.times == Times(rule="discrete", count=6, fraction=0.9)
    assert (trainer.weighting, trainer.power, trainer.kl_beta) == ("ghuber", 0.25, KL[path.stem])
    assert (trainer.average_beta, trainer.average) == (1.0, Decay(rate=0.001, limit=0.3))


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "awm") is AWM


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_awm; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
