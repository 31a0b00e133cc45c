"""What a spec may say about the trainer `{{ cookiecutter.name }}`, and where it is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory import Needs, Provides, TrainerSpec, hookimpl, key

SUMMARY = {{ cookiecutter.summary | quoted }}
TARGET = "{{ cookiecutter.__module }}.trainer:{{ cookiecutter.__class }}"


@attrs.frozen(kw_only=True)
class {{ cookiecutter.__class }}Spec(TrainerSpec):
    """Keys of `[trainer] name = "{{ cookiecutter.name }}"`."""

    kl_beta: float = key("Weight of the velocities' squared distance from the reference's; 0: off.", default=0.01, ge=0)

    @property
    def needs(self) -> Needs:
        return Needs(trajectory="steps", density="any", reference=self.kl_beta > 0)


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides("{{ cookiecutter.name }}", {{ cookiecutter.__class }}Spec, TARGET, SUMMARY)
