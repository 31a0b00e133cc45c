"""What every adapter owes, and what this one adapts."""

from __future__ import annotations

from pathlib import Path

import torch
from flowfactory import main
from flowfactory.testing import conformance

from {{ cookiecutter.__module }} import {{ cookiecutter.__class }}Spec
from {{ cookiecutter.__module }}.adapter import {{ cookiecutter.__class }}

test_conformance = conformance("flowfactory-plugin-{{ cookiecutter.name }}")


def test_every_target_is_a_layer(tmp_path: Path) -> None:
    adapter = {{ cookiecutter.__class }}({{ cookiecutter.__class }}Spec(path=str({{ cookiecutter.__class }}.tiny(tmp_path))))
    adapter.load(torch.device("cpu"), torch.float32)
    layers = [name for name, _ in adapter.networks()["transformer"].named_modules()]
    assert all(any(layer.endswith(target) for layer in layers) for target in adapter.lora_targets())


def test_the_example_is_sound() -> None:
    example = Path(__file__).parents[1] / "examples" / "{{ cookiecutter.name }}.toml"
    assert main(["check", str(example)]) == 0
