"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.contracts.specs import Decay, Times
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory_plugin_nft.nft import NFT
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert spec.trainer.name == "nft"
    assert spec.sampling.guidance == 1
    assert spec.trainer.spec.times == Times(rule="subset", count=spec.sampling.steps - 1)


def test_target_exists() -> None:
    assert Registry(installed_entries()).target("trainers", "nft") is NFT


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_nft; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


SLOW, LATE = Decay(rate=0.001, limit=0.5), Decay(rate=0.0075, limit=0.999, flat=75)
PUBLISHED = {
    "nft-sd35-pickscore": (10, 1.0, SLOW, 1),
    "nft-sd35-ocr": (10, 0.1, LATE, 2),
    "nft-sd35-multi": (25, 0.1, SLOW, 1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_examples_carry_the_published_numbers(name: str) -> None:
    spec = example(name)
    trainer = spec.trainer.spec
    assert (spec.sampling.steps, trainer.beta, trainer.old, spec.optimizer.updates) == PUBLISHED[name]
    assert (trainer.kl_beta, trainer.std, spec.optimizer.lr, spec.sampling.group) == (1e-4, "global", 3e-4, 24)
