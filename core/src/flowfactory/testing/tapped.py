"""An adapter loaded from its own tiny checkpoint, and what it owes where it drives a pipeline, held to the tap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import torch
from PIL import Image
from torch import Tensor

from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.key import Size
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Conditions, Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.testing.subject import NotOwed, Subject, expect, offline

CPU = torch.device("cpu")
SQUARE, WIDE = Size(64, 64), Size(64, 96)
TOLERANCE = 1e-5
"""Largest difference of velocities that should be equal, relative to the largest velocity."""
LEVELS = torch.tensor([0.9, 0.5, 0.2])
GUIDANCES = (1.0, 3.5)


class LoadedAdapter(Subject):
    """An adapter, loaded from its own tiny checkpoint on the CPU."""

    def tiny(self, folder: Path) -> Mapping[str, Any]:
        return {"path": str(self.target.tiny(folder))}

    def load(self, spec: Any = None, encoded: Conditions | None = None) -> Adapter[Any]:
        """A new adapter with its weights."""
        adapter: Adapter[Any] = self.target(spec or self.spec)
        with offline():
            adapter.load(CPU, torch.float32, encoded)
        return adapter

    @cached_property
    def adapter(self) -> Adapter[Any]:
        """One that no check changes."""
        return self.load()

    @cached_property
    def rows(self) -> Sequence[Row]:
        """Three rows; with images of their own, of two sizes, for an adapter that edits."""
        rows = self.hints.rows[:3]
        if not self.target.edits or rows[0].images:
            return rows
        images = [self.folder / f"{i}.png" for i in range(len(rows))]
        for i, path in enumerate(images):
            Image.linear_gradient("L").convert("RGB").rotate(60 * i).resize(((64, 64), (48, 64))[i % 2]).save(path)
        return [attrs.evolve(row, images=(path,)) for row, path in zip(rows, images, strict=True)]

    @cached_property
    def conditions(self) -> Conditions:
        """Of three rows."""
        return self.adapter.encode(self.rows)

    @cached_property
    def pipeline(self) -> PipelineAdapter[Any]:
        """The adapter, where it drives a pipeline.

        Raises:
            NotOwed: it drives none.
        """
        if not isinstance(self.adapter, PipelineAdapter):
            raise NotOwed("it drives no diffusers pipeline, so there is no tap to compare with")
        return self.adapter

    def overridden(self, *names: str) -> PipelineAdapter[Any]:
        """The adapter, where it has a version of its own of what the tap does.

        Raises:
            NotOwed: it leaves all of it to the tap.
        """
        adapter = self.pipeline
        if all(vars(PipelineAdapter)[name] is _found(type(adapter), name) for name in names):
            raise NotOwed(f"it leaves {' and '.join(names)} to the tap")
        return adapter

    def latents(self, size: Size = SQUARE, count: int = 3) -> Tensor:
        """Noise `(count, …)`, each time the same."""
        return Draws([(0, "conformance", i) for i in range(count)]).normal(*self.adapter.latent_shape(size))


def velocity_equals_the_tap(subject: LoadedAdapter) -> None:
    """Its own `velocity` is the tap's, at every size, guidance and noise level it is tried at."""
    adapter = subject.overridden("velocity")
    for size in (SQUARE, WIDE):
        x = subject.latents(size)
        for guidance in GUIDANCES:
            expected, found = (
                one(adapter, x, LEVELS, subject.conditions, guidance, size)
                for one in (PipelineAdapter.velocity, type(adapter).velocity)
            )
            near(expected, found, f"at {size} and guidance {guidance:g} its velocity is not the tap's")


def true_cfg_equals_the_tap(subject: LoadedAdapter) -> None:
    """The same with classifier-free guidance beside the embedded one."""
    subject.overridden("velocity")
    adapter = subject.target(attrs.evolve(subject.spec, true_cfg=2.0))
    try:
        adapter.load(CPU, torch.float32)
    except ValueError as refusal:
        raise NotOwed(str(refusal)) from None
    conditions, x = adapter.encode(subject.rows), subject.latents()
    expected = PipelineAdapter.velocity(adapter, x, LEVELS, conditions, 1.0, SQUARE)
    found = adapter.velocity(x, LEVELS, conditions, 1.0, SQUARE)
    near(expected, found, "with `true_cfg` 2 its velocity is not the tap's")


def decode_equals_the_tap(subject: LoadedAdapter) -> None:
    """Its own `decode` is the pipeline's."""
    adapter = subject.overridden("decode")
    for size in (SQUARE, WIDE):
        x = subject.latents(size, 2)
        near(
            PipelineAdapter.decode(adapter, x, size), adapter.decode(x, size), f"at {size} its media are not the tap's"
        )


def schedule_equals_the_tap(subject: LoadedAdapter) -> None:
    """Its own `sigmas` and `latent_shape` are the pipeline's, bit for bit."""
    adapter = subject.overridden("sigmas", "latent_shape")
    for size in (SQUARE, WIDE):
        expect(
            adapter.latent_shape(size) == PipelineAdapter.latent_shape(adapter, size),
            f"latents of {size} are {adapter.latent_shape(size)}",
        )
        for steps in (4, 10):
            expected = PipelineAdapter.sigmas(adapter, steps, size)
            expect(
                torch.equal(adapter.sigmas(steps, size), expected), f"{steps} steps at {size} are not the pipeline's"
            )


def encode_equals_the_tap(subject: LoadedAdapter) -> None:
    """Its own `encode` returns what the tap records, under the same names or not: the pipeline's velocities follow."""
    adapter = subject.overridden("encode")
    expected = PipelineAdapter.encode(adapter, subject.rows)
    x = subject.latents()
    near(
        PipelineAdapter.velocity(adapter, x, LEVELS, expected, 1.0, SQUARE),
        adapter.velocity(x, LEVELS, subject.conditions, 1.0, SQUARE),
        "with its own conditions, velocities are not the tap's",
    )


def near(expected: Tensor, found: Tensor, what: str) -> None:
    """Fail unless two results agree, but for rounding."""
    gap, size = float((expected - found).detach().abs().max()), float(expected.detach().abs().max())
    expect(gap <= TOLERANCE * size, f"{what}: they differ by {gap:.1e}, of {size:.1e}")


def _found(cls: type, name: str) -> Any:
    return next(vars(base)[name] for base in cls.__mro__ if name in vars(base))
