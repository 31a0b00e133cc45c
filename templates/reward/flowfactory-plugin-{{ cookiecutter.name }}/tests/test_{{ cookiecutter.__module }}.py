"""What every reward owes, and what this one computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flowfactory import Row, Sample, main
from flowfactory.testing import conformance

from {{ cookiecutter.__module }} import {{ cookiecutter.__class }}Spec
from {{ cookiecutter.__module }}.reward import {{ cookiecutter.__class }}

test_conformance = conformance("flowfactory-plugin-{{ cookiecutter.name }}")


@pytest.mark.parametrize(("colour", "score"), [((1.0, 0.0, 0.0), 1.0), ((0.0, 1.0, 1.0), 0.0), ((0.5, 0.5, 0.5), 0.5)])
def test_it_wants_its_colour(colour: tuple[float, float, float], score: float) -> None:
    image = torch.tensor(colour)[:, None, None].expand(3, 8, 8)
    reward = {{ cookiecutter.__class }}({{ cookiecutter.__class }}Spec())
    assert reward.score([Sample(Row("anything"), image, 0, 0)]) == [score]


def test_the_example_is_sound() -> None:
    example = Path(__file__).parents[1] / "examples" / "{{ cookiecutter.name }}.toml"
    assert main(["check", str(example)]) == 0
