"""What a spec may say about the scheduler `{{ cookiecutter.name }}`, and where it is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import Provides, StochasticSpec, hookimpl, key

SUMMARY = {{ cookiecutter.summary | quoted }}
TARGET = "{{ cookiecutter.__module }}.scheduler:{{ cookiecutter.__class }}"


@attrs.frozen(kw_only=True)
class {{ cookiecutter.__class }}Spec(StochasticSpec):
    """Keys of `[scheduler] name = "{{ cookiecutter.name }}"`."""

    eta: float = key("Noise per root of sigma, at pure noise.", default=0.5, gt=0)


@hookimpl
def flowfactory_schedulers() -> Iterable[Provides]:
    yield Provides("{{ cookiecutter.name }}", {{ cookiecutter.__class }}Spec, TARGET, SUMMARY)
