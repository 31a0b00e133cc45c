"""Whether what an adapter trains can be written for diffusers and read back, as `flowfactory export` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flowfactory.builtin import ODESpec
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.specs import TrainerSpec
from flowfactory.contracts.types import Row
from flowfactory.data.sources import Data
from flowfactory.export.export import difference, velocities
from flowfactory.export.forms import FORMS, Trained, device
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import (
    Checkpoint,
    Component,
    Eval,
    Lora,
    Memory,
    Optimizer,
    RunTable,
    Sampling,
    Spec,
    Track,
)

TUNING = Lora(rank=2, alpha=4.0)


@torch.no_grad()
def lora_gap(adapter: PipelineAdapter[Any], row: Row, size: Size, folder: Path) -> float:
    """Write LoRA for diffusers and read it back: how far velocities then are off, relative to the largest.

    Args:
        adapter: not loaded yet. folder: an existing one.

    Raises:
        ValueError: the pipeline loads no LoRA.
    """
    spec = spec_of(adapter.spec, size)
    adapter.load(device(), torch.float32)
    encoded = adapter.encode([row])
    weights = Weights(adapter.networks(), TUNING, adapter.lora_targets(), [], spec.run.seed)
    for parameter in weights.parameters.values():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(parameter))
    FORMS["lora"].write(Trained(spec, adapter, weights, {}, encoded), folder)
    read = FORMS["lora"].read(spec, folder, type(adapter), encoded)
    return difference(velocities(spec, adapter, encoded), velocities(spec, read, encoded))


def spec_of(model: Any, size: Size) -> Spec:
    """A spec around a `[model]` table; of the other tables only what exporting asks about matters."""
    return Spec(
        run=RunTable(name="conformance", epochs=0),
        model=Component(name="model", spec=model),
        tuning=TUNING,
        data=Data(prompts=Location("")),
        sampling=Sampling(size=size, steps=4, prompts=1, group=2),
        scheduler=Component(name="ode", spec=ODESpec()),
        trainer=Component(name="none", spec=TrainerSpec()),
        rewards=(),
        optimizer=Optimizer(lr=1.0),
        memory=Memory(),
        eval=Eval(),
        checkpoint=Checkpoint(),
        track=Track(),
    )
