"""The measurements of `make gpu`: every part runs at the smallest sizes; the large ones are as published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import made
import parts
import pytest
import suite
from accelerate.state import AcceleratorState
from flowfactory.discovery.registry import Registry
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec
from flowfactory.training import exact


def test_every_part_is_named() -> None:
    assert list(parts.PARTS) == list(suite.NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", suite.NAMES)
def test_a_dry_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure is a finite number, and every row of the table has its card, its command and its versions."""
    AcceleratorState._reset_state(True)  # a test before it may have left a precision of its own in this process
    assert suite.main(["--here", "--tiny", "--to", str(tmp_path), name]) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["rows"]
    assert result["tiny"]
    for row in result["rows"]:
        figures = {key: value for key, value in row.items() if key != "what"}
        assert figures
        assert all(math.isfinite(value) for value in figures.values())
    capsys.readouterr()
    assert suite.main(["--table", "--to", str(tmp_path)]) == 0
    _, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == len(result["rows"])
    for line, row in zip(lines, result["rows"], strict=True):
        assert line.startswith(f"| {row['what']} | ")
        assert f"| {result['card']}, tiny | `python tests/gpu/suite.py --tiny {name}` | flowfactory " in line


def test_what_is_there_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in suite.NAMES:
        (tmp_path / f"{name}.json").write_text("{}")
    assert suite.main(["--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: is there" for name in suite.NAMES]


def test_a_part_that_fails_or_lasts_leaves_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(suite, "__file__", str(broken))
    monkeypatch.setattr(suite, "LIMIT", 0.5)
    assert suite.main(["--to", str(tmp_path / "results"), "flux"]) == 1
    broken.write_text("raise RuntimeError('no memory is left')")
    monkeypatch.setattr(suite, "LIMIT", 60)
    assert suite.main(["--to", str(tmp_path / "results"), "flux"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "flux: took longer than 0.5 s",
        "flux: failed: RuntimeError: no memory is left",
    ]
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "billions"),
    [
        (parts.Setting(family="flux", sizes=made.FLUX, tiny=False, guidance=3.5), 11.9),
        (parts.Setting(family="qwen-image", sizes=made.QWEN, tiny=False, guidance=4.0), 20.4),
        (parts.Setting(family="wan", sizes=made.WAN, tiny=False, size=[480, 832, 81]), 1.42),
    ],
    ids=["flux", "qwen-image", "wan"],
)
def test_the_large_models_are_as_large_as_published_and_compute(
    setting: parts.Setting, billions: float, tmp_path: Path
) -> None:
    """As fake tensors, of which nothing is allocated; what computes has all widths and one layer of each kind."""
    (network,) = model_of(setting, tmp_path / "whole")[1].networks().values()
    assert sum(p.numel() for p in network.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    few = {key: 1 for key in ("num_layers", "num_single_layers") if key in setting.sizes["transformer"]}
    shallow = {**setting.sizes, "transformer": {**setting.sizes["transformer"], **few}}
    spec, model = model_of(attrs.evolve(setting, sizes=shallow), tmp_path / "shallow")
    assert exact.measure(spec, model).kept > 0


def model_of(setting: parts.Setting, folder: Path) -> tuple[Spec, PipelineAdapter[Any]]:
    folder.mkdir()
    registry = Registry()
    spec = load_spec(setting.written(folder), registry)
    return spec, exact.model(spec, registry.target("adapters", setting.family))
