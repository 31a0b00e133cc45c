"""The plugin as it is found: its examples are sound and carry the published numbers, its hooks import no torch."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory_plugin_dmd.dmd import DMD
from flowfactory_plugin_dmd.tdm import TDM
from plugin_examples import example_of, examples_of

EXAMPLES = examples_of(__file__)
example = functools.partial(example_of, EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    spec = example(path.stem)
    assert spec.run.name == path.stem
    assert path.stem.startswith(spec.trainer.name)
    assert (spec.sampling.guidance, spec.sampling.steps, spec.group, spec.rewards) == (1.0, 4, 1, ())


@pytest.mark.parametrize(("name", "target"), [("dmd", DMD), ("tdm", TDM)])
def test_target_exists(name: str, target: type) -> None:
    assert Registry(installed_entries()).target("trainers", name) is target


def test_hooks_import_no_torch() -> None:
    script = "import sys, flowfactory_plugin_dmd; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_examples_carry_the_published_numbers() -> None:
    dmd, tdm = example("dmd-sd35"), example("tdm-sd35")
    for spec, prompts, steps in ((dmd, 512, 5), (tdm, 128, 1)):
        own = spec.trainer.spec
        assert (spec.sampling.prompts, own.fake_steps, own.fake_lr, own.guidance) == (prompts, steps, 1.0, 4.0)
        assert (spec.optimizer.lr, spec.optimizer.weight_decay, spec.tuning.rank, spec.tuning.alpha) == (
            1e-5,
            1e-4,
            32,
            64,
        )
    assert (dmd.trainer.spec.times.range, dmd.trainer.spec.fake_loss) == ((0.02, 0.98), "velocity")
    own = tdm.trainer.spec
    assert (own.interval, own.levels, own.huber, own.most, own.importance) == ("above", "logit-normal", 1e-3, 5.0, 20.0)
