"""The plugin as it is found: its examples are sound and carry diffusers' numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.contracts.specs import Times
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.spec.tables import Lora
from flowfactory_plugin_sft import PRETRAINING
from flowfactory_plugin_sft.sft import SFT
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert (spec.trainer.name, spec.trainer.spec.weighting, spec.trainer.spec.guidance) == ("sft", "none", 1)


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "sft") is SFT


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_sft; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


EVEN = Times(rule="uniform", shift=3.0, range=(0.0, 1.0), table=1000, count=1)
PUBLISHED = {"sft-sd3": (PRETRAINING, True, 4e-4, "fp16"), "sft-flux": (EVEN, False, 1e-4, "bf16")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_diffusers_numbers(name: str) -> None:
    spec = example(name)
    trainer, tuning = spec.trainer.spec, spec.tuning
    assert (trainer.times, trainer.precondition, spec.optimizer.lr, spec.run.precision) == PUBLISHED[name]
    assert isinstance(tuning, Lora)
    assert (tuning.rank, spec.run.epochs, spec.sampling.prompts, spec.optimizer.micro_batch) == (4, 500, 4, 1)
