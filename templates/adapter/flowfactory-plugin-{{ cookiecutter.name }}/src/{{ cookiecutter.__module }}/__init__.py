"""What a spec may say about the adapter `{{ cookiecutter.name }}`, and where it is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import PipelineSpec, Provides, hookimpl

SUMMARY = {{ cookiecutter.summary | jsonify }}
TARGET = "{{ cookiecutter.__module }}.adapter:{{ cookiecutter.__class }}"


@attrs.frozen(kw_only=True)
class {{ cookiecutter.__class }}Spec(PipelineSpec):
    """Keys of `[model] name = "{{ cookiecutter.name }}"`: those of every diffusers pipeline."""


@hookimpl
def flowfactory_adapters() -> Iterable[Provides]:
    yield Provides("{{ cookiecutter.name }}", {{ cookiecutter.__class }}Spec, TARGET, SUMMARY)
