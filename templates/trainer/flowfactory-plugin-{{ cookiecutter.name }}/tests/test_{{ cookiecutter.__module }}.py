"""What every trainer owes, and what this one computes."""

from __future__ import annotations

from pathlib import Path

from flowfactory import Needs, main
from flowfactory.testing import conformance

from {{ cookiecutter.__module }} import {{ cookiecutter.__class }}Spec

NAME = "flowfactory-plugin-{{ cookiecutter.name }}"

test_conformance = conformance(NAME)
test_conformance_without_reference = conformance(NAME, keys={"{{ cookiecutter.name }}": {"kl_beta": 0.0}})


def test_the_reference_is_only_wanted_where_it_counts() -> None:
    assert {{ cookiecutter.__class }}Spec(kl_beta=0.0).needs == Needs(trajectory="steps", density="any")
    assert {{ cookiecutter.__class }}Spec(kl_beta=0.1).needs.reference


def test_the_example_is_sound() -> None:
    example = Path(__file__).parents[1] / "examples" / "{{ cookiecutter.name }}.toml"
    assert main(["check", str(example)]) == 0
