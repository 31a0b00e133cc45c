"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory_plugin_refl.draft import Draft
from flowfactory_plugin_refl.refl import ReFL
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert path.stem.startswith(spec.trainer.name)
    assert (spec.sampling.guidance, spec.group) == (1.0, 1)


@pytest.mark.parametrize(("name", "target"), [("draft", Draft), ("refl", ReFL)])
def test_target_exists(name: str, target: type) -> None:
    assert Registry(installed_entries()).target("trainers", name) is target


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_refl; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_examples_carry_the_published_numbers() -> None:
    draft, refl = example("draft-sd35-pickscore"), example("refl-sd35-pickscore")
    found = (draft.sampling.steps, draft.sampling.prompts, draft.optimizer.lr, draft.optimizer.weight_decay)
    assert (*found, draft.trainer.spec.steps, draft.run.epochs) == (4, 12, 1e-4, 0.0, 1, 200)
    found = (refl.sampling.steps, refl.sampling.prompts, refl.optimizer.lr, refl.optimizer.weight_decay)
    own = refl.trainer.spec
    assert (*found, own.fraction, own.threshold, own.scale) == (40, 8, 1e-5, 1e-2, 0.25, 2.0, 1e-3)
