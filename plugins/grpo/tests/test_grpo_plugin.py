"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.spec.tables import Lora
from flowfactory.spec.window import stochastic_steps
from flowfactory_plugin_grpo.grpo import GRPO
from flowfactory_plugin_grpo.guard import GRPOGuard
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


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


# steps, eta, prompts, group, std, rank, learning rate, clip, KL
PUBLISHED = {
    "flow-grpo-sd35-ocr": (10, 0.7, 48, 24, "global", 32, 3e-4, 1e-4, 0.004),
    "flow-grpo-sd35-pickscore": (10, 0.7, 48, 24, "global", 32, 3e-4, 1e-4, 0.001),
    "flow-grpo-flux": (6, 0.9, 48, 24, "global", 64, 3e-4, 1e-4, 0.0),
    "flow-grpo-wan": (20, 1.0, 32, 4, "group", 32, 1e-4, 1e-3, 0.004),
    "flow-grpo-qwen-image": (10, 1.2, 32, 16, "global", 64, 3e-4, 1e-4, 0.0),
    "flow-grpo-fast-sd35": (10, 0.8, 64, 18, "global", 32, 3e-4, 1e-5, 0.0),
    "flow-grpo-fast-flux": (6, 0.8, 48, 24, "group", 64, 3e-4, 1e-5, 0.0),
    "flash-grpo-wan": (20, 1.0, 8, 4, "global", 32, 1e-4, 1e-3, 0.0),
    "dance-grpo-flux": (16, 0.3, 8, 12, "group", 0, 1e-5, 1e-4, 0.0),
    "mixgrpo-flux": (25, 0.7, 8, 12, "group", 0, 1e-5, 1e-4, 0.0),
    "grpo-guard-sd35-ocr": (10, 0.7, 48, 24, "group", 32, 1e-4, 2e-6, 0.0),
    "grpo-guard-sd35-pickscore": (10, 0.7, 48, 24, "group", 32, 1e-4, 4e-6, 0.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_the_published_numbers(name: str) -> None:
    spec = example(name)
    trainer, sampling = spec.trainer.spec, spec.sampling
    rank = spec.tuning.rank if isinstance(spec.tuning, Lora) else 0
    assert (
        *(sampling.steps, spec.scheduler.spec.eta, sampling.prompts, sampling.group, trainer.std, rank),
        *(spec.optimizer.lr, trainer.clip_high, trainer.kl_beta),
    ) == PUBLISHED[name]
    assert trainer.clip_low == trainer.clip_high
    assert trainer.adv_clip == 5
    if isinstance(spec.tuning, Lora):
        assert spec.tuning.alpha == 2 * rank


@pytest.mark.parametrize("name", ["flow-grpo-wan", "flash-grpo-wan"])
def test_wan_is_sampled_by_its_authors_law(name: str) -> None:
    spec = example(name)
    assert spec.scheduler.name == "linear-sde"
    assert spec.trainer.spec.kl == "exact"


def test_an_average_at_every_step_is_as_slow_as_the_authors_at_every_eighth() -> None:
    assert example("flow-grpo-sd35-ocr").optimizer.ema ** 8 == pytest.approx(0.9, abs=1e-3)
    assert example("flow-grpo-qwen-image").optimizer.ema == 0


WINDOWS = {
    "flow-grpo-fast-sd35": (10, 3, 5),
    "flow-grpo-fast-flux": (6, 3, 3),
    "flow-grpo-qwen-image": (10, 2, 5),
    "flash-grpo-wan": (20, 1, 10),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_keep_to_the_authors_steps(name: str) -> None:
    """Neighbouring steps, from the first on, the last excluded; every place is drawn."""
    steps, size, end = WINDOWS[name]
    window = example(name).scheduler.spec.window
    drawn = {stochastic_steps(window, steps, 0, epoch) for epoch in range(200)}
    assert drawn == {tuple(range(start, start + size)) for start in range(end - size + 1)}


def test_mixgrpos_window_walks_as_published() -> None:
    window = example("mixgrpo-flux").scheduler.spec.window
    assert [stochastic_steps(window, 25, 0, epoch) for epoch in (1, 25, 26)] == [(0, 1, 2, 3)] * 2 + [(1, 2, 3, 4)]
