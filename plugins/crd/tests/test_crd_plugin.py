"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.contracts.specs import Decay, Times
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.spec.tables import Lora
from flowfactory_plugin_crd.crd import CRD
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert spec.trainer.name == "crd"


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "crd") is CRD


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_crd; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_example_carries_the_published_numbers() -> None:
    spec = example("crd-sd35-ocr")
    sampling, trainer, tuning = spec.sampling, spec.trainer.spec, spec.tuning
    assert isinstance(tuning, Lora)
    assert (sampling.steps, sampling.guidance, sampling.prompts, sampling.group) == (10, 1, 48, 24)
    assert (trainer.beta, trainer.temperature, trainer.loss, trainer.adaptive) == (1, None, "mse", True)
    assert (trainer.kl_beta, trainer.adaptive_kl, trainer.reference_guidance) == (0.1, True, 4.5)
    assert (trainer.old, trainer.sampler) == (
        Decay(rate=0.005, limit=0.999, start=0.25),
        Decay(rate=0.0075, limit=0.999, flat=75),
    )
    assert (trainer.times, trainer.std) == (Times(rule="discrete", fraction=0.99, count=20), "global")
    assert (tuning.rank, tuning.alpha, spec.optimizer.lr, spec.optimizer.updates) == (32, 64, 3e-4, 2)
