"""The public surface is this list; a name that comes or goes is a decision."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import flowfactory
import pytest
from flowfactory.contracts import hooks
from flowfactory.discovery.entries import KINDS

PUBLIC = [
    "Adapter",
    "AdapterSpec",
    "Asked",
    "Batch",
    "Branches",
    "Calls",
    "ClippedSpec",
    "ClippedTerm",
    "Composite",
    "Conditions",
    "Cut",
    "Decay",
    "DecoupledSpec",
    "Density",
    "DifferentiableReward",
    "DifferentiableSpec",
    "Display",
    "Draws",
    "Field",
    "Function",
    "GroupReward",
    "History",
    "IMAGE",
    "Lineage",
    "Location",
    "Loss",
    "Moments",
    "Needs",
    "NoKeys",
    "NoisyScheduler",
    "Old",
    "Phase",
    "PipelineAdapter",
    "PipelineSpec",
    "Plan",
    "Policy",
    "Precision",
    "Provides",
    "RatioSpec",
    "Reward",
    "RewardError",
    "Role",
    "Rollout",
    "Row",
    "Run",
    "RunError",
    "Sample",
    "Scheduler",
    "SchedulerSpec",
    "Score",
    "Scores",
    "SecretError",
    "Server",
    "ServerError",
    "Shared",
    "Shot",
    "Size",
    "Spec",
    "State",
    "StochasticScheduler",
    "StochasticSpec",
    "Times",
    "Tracker",
    "Trainer",
    "TrainerSpec",
    "Transition",
    "Unavailable",
    "Update",
    "Window",
    "averaging",
    "clipped",
    "clipped_loss",
    "clipped_terms",
    "divergence",
    "euler",
    "field_of",
    "flatten",
    "hookimpl",
    "key",
    "lengths",
    "levels_and_noise",
    "like_latents",
    "main",
    "noise_levels",
    "noised",
    "old_logprob",
    "old_mean",
    "open_rewards",
    "over_groups",
    "per_sample_mean",
    "ratio_metrics",
    "read_runs",
    "read_spec",
    "reference_velocity",
    "replayed",
    "retried",
    "secret",
    "see_writable",
    "shown",
    "some_frames",
    "to_bytes",
    "to_image",
    "together",
    "user_folder",
    "velocities",
    "write_whole",
]


ROOT = Path(__file__).parents[2]
OTHERS = {"flowfactory.testing", "flowfactory.models.tiny"}
"""What plugins may import beside the package itself."""

WRITTEN = sorted(
    [*ROOT.glob("plugins/*/src/**/*.py"), *ROOT.glob("plugins/*/examples/*.py"), *ROOT.glob("templates/**/*.py")]
)


def test_public_names() -> None:
    assert flowfactory.__all__ == PUBLIC
    assert dir(flowfactory) == PUBLIC


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_are_written_like_a_strangers(path: Path) -> None:
    """By lines, since templates are no Python until they are baked."""
    homes = re.findall(r"^\s*(?:from|import) (flowfactory(?:\.[\w.]+)?)(?=\s)", path.read_text(), re.MULTILINE)
    assert {home for home in homes if home != "flowfactory"} <= OTHERS


def test_there_are_plugins_to_look_at() -> None:
    assert len(WRITTEN) > 40


UNDOCUMENTED = {
    "Conditions",
    "Function",
    "Location",
    "Precision",
    "Calls",
    "ClippedSpec",
    "ClippedTerm",
    "Density",
    "Field",
    "State",
    "Score",
    "Shared",
    "Shot",
    "IMAGE",
    "Lineage",
    "hookimpl",
}
"""Values and types that have their words beside them in the source."""


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_there_and_documented(name: str) -> None:
    value = flowfactory.__getattr__(name)
    assert name in UNDOCUMENTED or value.__doc__


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
