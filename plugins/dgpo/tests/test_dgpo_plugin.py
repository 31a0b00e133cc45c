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
from flowfactory_plugin_dgpo.dgpo import DGPO
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    trainer = spec.trainer.spec
    assert spec.run.name == path.stem
    assert (spec.trainer.name, trainer.guidance, trainer.reference_guidance) == ("dgpo", 1, 1)
    assert trainer.times == Times(rule="discrete", fraction=0.7, count=4)
    assert spec.optimizer.micro_batch == spec.sampling.group


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "dgpo") is DGPO


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_dgpo; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# guidance of sampling, prompts, group, baseline, beta, clip, weight of the divergence
PUBLISHED = {
    "dgpo-sd35-ocr": (4.5, 8, 16, "reference", 100, 1e-2, 0.02),
    "dgpo-sd35-ocr-nocfg": (1.0, 8, 16, "old", 2000, 1e-3, 0.001),
    "dgpo-sd35-pickscore": (4.5, 24, 24, "reference", 10, 5e-2, 0.001),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_the_published_numbers(name: str) -> None:
    spec = example(name)
    sampling, trainer, tuning = spec.sampling, spec.trainer.spec, spec.tuning
    assert isinstance(tuning, Lora)
    found = (sampling.guidance, sampling.prompts, sampling.group, trainer.baseline, trainer.beta, trainer.clip_high)
    assert (*found, trainer.kl_beta) == PUBLISHED[name]
    assert (trainer.clip_low, trainer.adv_clip, trainer.std) == (trainer.clip_high, 5, "global")
    assert trainer.old == Decay(rate=0.001, limit=0.3, flat=1)
    assert (tuning.rank, tuning.alpha, sampling.steps, spec.optimizer.lr, spec.optimizer.updates) == (
        64,
        128,
        10,
        3e-4,
        1,
    )
