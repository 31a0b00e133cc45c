"""Which networks a team computes; what it computes is in `teams`, by two processes."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models import transformers
from flowfactory.plan.disk import TEAMED
from flowfactory.processes.context import Team, Uneven, divisible
from flowfactory.spec.tables import Memory

PLANNED = re.compile(r"^class (\w+)\(.*?(?=^class |\Z)", re.MULTILINE | re.DOTALL)


def test_networks_are_known_by_name_before_torch_is_loaded() -> None:
    """All that diffusers has a plan for, and can compute a gradient of."""
    files = Path(transformers.__path__[0]).glob("*.py")
    classes = [found for file in files for found in PLANNED.finditer(file.read_text())]
    planned = {found[1] for found in classes if re.search(r"^    _cp_plan = \{", found[0], re.MULTILINE)}
    assert planned > {*TEAMED, "LTXVideoTransformer3DModel", "HeliosTransformer3DModel"}
    able = {name for name in planned if divisible(getattr(diffusers, name)._cp_plan)}
    assert able - set(TEAMED) <= {"MiniMaxH3Transformer3DModel"}  # makes sound, too, and no adapter drives it
    assert set(TEAMED) <= able
    assert not divisible(diffusers.SD3Transformer2DModel._cp_plan)


def test_one_process_is_a_team_whatever_is_asked_for() -> None:
    alone, beside = Team.of(0, 1, Memory(ulysses=4), "cpu"), Team.of(3, 8, Memory(), "cpu")
    assert (alone.number, alone.count, alone.size, alone.leads) == (0, 1, 1, True)
    assert (beside.number, beside.count, beside.size, beside.leads) == (3, 8, 1, True)
    assert [alone.any(flag, torch.device("cpu")) for flag in (True, False)] == [True, False]
    network = torch.nn.Linear(1, 1)
    alone.divide(network)


def test_only_what_is_about_tokens_is_told_as_that() -> None:
    team = Team(0, 1, True, None, "[memory] ring = 3")
    with pytest.raises(AssertionError, match=r"^else$"), team.evenly():
        raise AssertionError("else")
    with pytest.raises(Uneven, match="ring = 3 does not divide"), team.evenly():
        raise AssertionError("Tensor size along dimension to be sharded must be divisible by mesh size")
