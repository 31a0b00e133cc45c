"""What every scheduler owes, and what this one computes."""

from __future__ import annotations

from pathlib import Path

import torch
from flowfactory import main
from flowfactory.testing import conformance

from {{ cookiecutter.__module }} import {{ cookiecutter.__class }}Spec
from {{ cookiecutter.__module }}.scheduler import {{ cookiecutter.__class }}

test_conformance = conformance("flowfactory-plugin-{{ cookiecutter.name }}")


def test_a_step_worked_out_by_hand() -> None:
    scheduler = {{ cookiecutter.__class }}({{ cookiecutter.__class }}Spec(eta=1.0))
    x, v = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    moments = scheduler.moments_of(v, x, torch.tensor([0.5]), torch.tensor([0.25]), 0.9)
    torch.testing.assert_close(moments.mean, torch.tensor([[2.0 - 0.25 - 0.0625 * 2.5]]))
    torch.testing.assert_close(moments.std, torch.tensor([[0.25]]))


def test_the_example_is_sound() -> None:
    example = Path(__file__).parents[1] / "examples" / "{{ cookiecutter.name }}.toml"
    assert main(["check", str(example)]) == 0
