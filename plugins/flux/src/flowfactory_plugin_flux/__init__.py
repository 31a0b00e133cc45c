"""FLUX.1 for flowfactory: what the spec may say, and where the adapter is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from flowfactory.builtin import PipelineSpec
from flowfactory.hooks import Provides, hookimpl
from flowfactory.spec import Calls


@attrs.frozen(kw_only=True)
class FluxSpec(PipelineSpec):
    """FLUX.1 dev and schnell. `guidance` is the embedded guidance of dev; schnell has none and ignores it."""

    @property
    def calls(self) -> Calls:
        return "batch"


@attrs.frozen(kw_only=True)
class FluxKontextSpec(PipelineSpec):
    """FLUX.1 Kontext: each row has the image to edit. `guidance` is embedded."""


@hookimpl
def flowfactory_adapters() -> Iterable[Provides]:
    yield Provides("flux", FluxSpec, "flowfactory_plugin_flux.flux:Flux", "FLUX.1 dev and schnell.")
    target = "flowfactory_plugin_flux.kontext:FluxKontext"
    yield Provides("flux-kontext", FluxKontextSpec, target, "FLUX.1 Kontext: edits images.")
