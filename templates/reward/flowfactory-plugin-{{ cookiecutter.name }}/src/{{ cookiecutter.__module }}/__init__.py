"""What a spec may say about the reward `{{ cookiecutter.name }}`, and where it is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import Provides, hookimpl, key

SUMMARY = {{ cookiecutter.summary | quoted }}
TARGET = "{{ cookiecutter.__module }}.reward:{{ cookiecutter.__class }}"


@attrs.frozen(kw_only=True)
class {{ cookiecutter.__class }}Spec:
    """Keys of `[[reward]] name = "{{ cookiecutter.name }}"`."""

    colour: tuple[float, float, float] = key("The wanted red, green and blue.", default=(1.0, 0.0, 0.0), ge=0, le=1)


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides("{{ cookiecutter.name }}", {{ cookiecutter.__class }}Spec, TARGET, SUMMARY)
