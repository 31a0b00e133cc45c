"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec
from flowfactory.spec.window import stochastic_steps
from flowfactory_plugin_grpo.grpo import GRPO
from flowfactory_plugin_grpo.guard import GRPOGuard

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


def example(name: str) -> Spec:
    (path,) = (path for path in EXAMPLES if path.stem == name)
    return load_spec(path, Registry(installed_entries()))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert spec.trainer.name in ("grpo", "grpo-guard")


def test_targets_exist() -> None:
    registry = Registry(installed_entries())
    assert registry.target("trainers", "grpo") is GRPO
    assert registry.target("trainers", "grpo-guard") is GRPOGuard


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_grpo; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# steps, eta, group, learning rate, clip, KL
PUBLISHED = {
    "flow-grpo-sd35-ocr": (10, 0.7, 24, 3e-4, 1e-4, 0.004),
    "flow-grpo-sd35-pickscore": (10, 0.7, 24, 3e-4, 1e-4, 0.001),
    "flow-grpo-flux": (6, 0.9, 24, 3e-4, 1e-4, 0.0),
    "flow-grpo-wan": (20, 0.7, 4, 1e-4, 1e-3, 0.0004),
    "flow-grpo-fast-sd35": (10, 0.8, 24, 3e-4, 1e-5, 0.0),
    "flow-grpo-fast-flux": (6, 0.8, 18, 3e-4, 1e-5, 0.0),
    "dance-grpo-flux": (16, 0.3, 12, 1e-5, 1e-4, 0.0),
    "mixgrpo-flux": (25, 0.7, 12, 1e-5, 1e-4, 0.0),
    "grpo-guard-sd35-ocr": (10, 0.7, 24, 1e-4, 2e-6, 0.0),
    "grpo-guard-sd35-pickscore": (10, 0.7, 24, 1e-4, 4e-6, 0.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_the_published_numbers(name: str) -> None:
    spec = example(name)
    trainer, eta = spec.trainer.spec, spec.scheduler.spec.eta
    found = (spec.sampling.steps, eta, spec.sampling.group, spec.optimizer.lr, trainer.clip_high, trainer.kl_beta)
    assert found == PUBLISHED[name]
    assert trainer.clip_low == trainer.clip_high
    assert trainer.adv_clip == 5


def test_mixgrpos_window_walks_as_published() -> None:
    window = example("mixgrpo-flux").scheduler.spec.window
    assert [stochastic_steps(window, 25, 0, epoch) for epoch in (1, 25, 26)] == [(0, 1, 2, 3)] * 2 + [(1, 2, 3, 4)]


def test_flow_grpo_fast_keeps_to_the_first_half() -> None:
    window = example("flow-grpo-fast-sd35").scheduler.spec.window
    assert {stochastic_steps(window, 10, 0, epoch) for epoch in range(60)} == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
