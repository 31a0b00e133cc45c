"""The plugin as it is found: its examples are sound and carry diffusers' numbers, its hooks import no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.contracts.specs import Times
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Lora, Spec
from flowfactory_plugin_sft import PRETRAINING
from flowfactory_plugin_sft.sft import SFT

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


def example(name: str) -> Spec:
    (path,) = (path for path in EXAMPLES if path.stem == name)
    return load_spec(path, Registry(installed_entries()))


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
