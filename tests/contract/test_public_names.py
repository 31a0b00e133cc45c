"""The public surface is this list; a name that comes or goes is a decision."""

from __future__ import annotations

import subprocess
import sys

import flowfactory
import pytest
from flowfactory.contracts import hooks
from flowfactory.discovery.entries import KINDS

PUBLIC = [
    "Adapter",
    "AdapterSpec",
    "Batch",
    "Conditions",
    "Decay",
    "DecoupledSpec",
    "Draws",
    "GroupReward",
    "Location",
    "Loss",
    "Moments",
    "Needs",
    "NoKeys",
    "PipelineAdapter",
    "Policy",
    "Provides",
    "Reward",
    "Rollout",
    "Row",
    "Sample",
    "Scheduler",
    "SchedulerSpec",
    "Scores",
    "Size",
    "Spec",
    "StochasticScheduler",
    "StochasticSpec",
    "Times",
    "Trainer",
    "TrainerSpec",
    "Update",
    "Window",
    "hookimpl",
    "key",
]


def test_public_names() -> None:
    assert flowfactory.__all__ == PUBLIC
    assert dir(flowfactory) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_there_and_documented(name: str) -> None:
    value = vars(flowfactory)[name] if name in vars(flowfactory) else flowfactory.__getattr__(name)
    assert name in ("Conditions", "Location", "hookimpl") or value.__doc__


def test_importing_costs_nothing() -> None:
    code = "import sys, flowfactory; assert not {'torch', 'attrs', 'pluggy'} & set(sys.modules); flowfactory.key"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hooks() -> None:
    assert sorted(name for name in vars(hooks) if name.startswith("flowfactory_")) == [
        "flowfactory_adapters",
        "flowfactory_checkpoint_saved",
        "flowfactory_epoch_finished",
        "flowfactory_rewards",
        "flowfactory_run_finished",
        "flowfactory_run_started",
        "flowfactory_samples_scored",
        "flowfactory_schedulers",
        "flowfactory_tracker",
        "flowfactory_trainers",
    ]
    assert {kind.hook for kind in KINDS.values()} < set(vars(hooks))
