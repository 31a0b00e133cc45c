"""Noise schedules: diffusers' own numbers, as recorded in `golden/schedule.json`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from flowfactory.models import stepping

GOLDEN = Path(__file__).parents[2] / "golden" / "schedule.json"
CASES = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}
EULER = [name for name in CASES if name.startswith(("static", "dynamic"))]
UNIPC = [name for name in CASES if name.startswith("unipc")]


def expected(name: str, what: str) -> torch.Tensor:
    return torch.tensor(CASES[name]["outputs"][what]["data"], dtype=torch.float64)


def scheduled(name: str):
    """The scheduler of a case, tapped, after a pipeline has set its schedule."""
    inputs = CASES[name]["inputs"]
    steps = inputs["N"]
    if name in UNIPC:
        scheduler = stepping.scheduler(UniPCMultistepScheduler(**inputs["cfg"]))
        scheduler.set_timesteps(steps)
        return scheduler
    scheduler = stepping.scheduler(FlowMatchEulerDiscreteScheduler(**inputs.get("cfg", {"shift": inputs.get("shift")})))
    if name.endswith(f"_default_N{steps}"):
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=inputs.get("mu"))
    return scheduler


@pytest.mark.parametrize("name", [*EULER, *UNIPC])
def test_a_tapped_scheduler_keeps_its_schedule(name):
    scheduler = scheduled(name)
    assert torch.equal(scheduler.sigmas.double(), expected(name, "sigmas"))
    assert torch.equal(scheduler.timesteps.double(), expected(name, "timesteps"))


@pytest.mark.parametrize("name", EULER)
def test_flow_matching_timesteps_are_a_thousand_sigmas(name):
    sigmas = expected(name, "sigmas").float()
    assert torch.equal((sigmas[:-1] * 1000).double(), expected(name, "timesteps"))


@pytest.mark.parametrize(
    "base", [FlowMatchEulerDiscreteScheduler(shift=3.0), scheduled(UNIPC[0])], ids=["euler", "unipc"]
)
def test_a_pinned_schedule_is_always_this_one(base):
    pinned = stepping.scheduler(base, [0.25, 0.0], [250.9])
    pinned.set_timesteps(7)
    assert pinned.sigmas.tolist() == [0.25, 0.0]
    truncated = [250] if pinned.timesteps.dtype == torch.int64 else [pytest.approx(250.9)]
    assert pinned.timesteps.tolist() == truncated
    assert len(base.sigmas) != 2


def test_a_tapped_step_stops_and_carries_what_the_network_said():
    pinned = stepping.scheduler(FlowMatchEulerDiscreteScheduler(), [0.5, 0.0], [500.0])
    v, x = torch.ones(1), torch.zeros(1)
    with pytest.raises(stepping.Reached) as reached:
        pinned.step(v, 500.0, x, return_dict=False)
    assert reached.value.model_output is v
    assert reached.value.sample is x
