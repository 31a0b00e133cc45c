"""What is said of memory when a run is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flowfactory.discovery.registry import Registry
from flowfactory.plan.estimate import Estimate, Need
from flowfactory.plan.plan import make_plan
from flowfactory.spec.structure import load_spec
from flowfactory.training import loop
from specs import lay


@pytest.mark.parametrize(
    ("accelerator", "words"),
    [(True, ["memory, planned and measured: sample 1 KiB, 3 KiB"]), (False, [])],
)
def test_memory_is_compared_with_the_plan_where_the_plan_counts_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: bool, words: list[str]
) -> None:
    """Main memory holds much else, so that on a CPU the line would read as a plan that is wrong by ten."""
    plan = make_plan(load_spec(lay(tmp_path), Registry()), {})
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(loop, "estimate", lambda *_: Estimate((), (Need("sample", 1024, ""),)))
    lines = [{"memory/sample": 2048.0}, {"memory/sample": 3072.0}, {"loss": 1.0}]
    assert loop.compared(plan, lines) == words
