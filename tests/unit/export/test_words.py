"""What an export says of its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flowfactory_plugin_shapes
import pytest
import torch
from flowfactory.discovery.registry import Registry
from flowfactory.export.words import base_name, loading, packaged, seen_from
from flowfactory.spec.structure import load_spec
from flowfactory_plugin_flux.flux import Flux

SHAPES = Path(flowfactory_plugin_shapes.__file__).parent
EXAMPLE = SHAPES.parents[1] / "examples" / "shapes-grpo.toml"


@pytest.mark.parametrize("path", ["/models/flux", "/", "owner/name", "flowfactory_plugin_shapes/checkpoint"])
def test_what_lies_elsewhere_is_in_no_package(path: str) -> None:
    assert packaged(path) == ""


def test_a_folder_with_code_that_nobody_can_import_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    assert packaged(str(tmp_path / "mine" / "checkpoint")) == ""


def test_a_base_in_a_package_is_loaded_from_there_wherever_the_export_is(tmp_path: Path) -> None:
    spec = load_spec(EXAMPLE, Registry())
    base = seen_from(tmp_path / "export", tmp_path / "runs" / "run", spec.model.spec.path)
    assert base == base_name(spec) == "flowfactory_plugin_shapes:checkpoint"
    adapter = Flux(spec.model.spec)
    adapter.load(torch.device("cpu"), torch.float32)
    known: dict[str, Any] = {}
    exec(loading(adapter, spec, base), known)
    assert type(known["pipe"]) is type(adapter.pipe)
    weights = known["pipe"].transformer.state_dict()
    assert all(torch.equal(weights[name], own) for name, own in adapter.pipe.transformer.state_dict().items())
