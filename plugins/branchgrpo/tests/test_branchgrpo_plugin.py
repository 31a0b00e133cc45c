"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory_plugin_branchgrpo.branchgrpo import BranchGRPO
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_carry_the_published_numbers(path: Path) -> None:
    spec = example(path.stem)
    trainer, sampling = spec.trainer.spec, spec.sampling
    assert (spec.run.name, spec.trainer.name) == (path.stem, "branchgrpo")
    assert (sampling.steps, sampling.guidance, spec.scheduler.spec.eta, spec.optimizer.lr) == (20, 3.5, 0.3, 1e-5)
    assert (trainer.splits, trainer.width) == ((0, 3, 6, 9), 2)
    assert (trainer.clip_low, trainer.clip_high, trainer.adv_clip) == (1e-3, 1e-3, 5)


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "branchgrpo") is BranchGRPO


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_branchgrpo; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
