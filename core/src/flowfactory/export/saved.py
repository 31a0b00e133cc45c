"""The base that weights of a run are put into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowfactory.contracts.adapter import Adapter
from flowfactory.policy.loras import of_checkpoint
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Full, Spec


def place_for(spec: Spec, adapter: Adapter[Any], saved: Path, sets: Sequence[str] = ()) -> Weights:
    """The weights of the base in a loaded adapter, so that those in a checkpoint's file can take their place.

    Args:
        sets: names under which the base's own are kept as well.
    """
    full = isinstance(spec.tuning, Full)
    targets = [] if full else adapter.lora_targets()
    start = None if full or spec.tuning.from_ is None else of_checkpoint(saved, adapter.networks())
    return Weights(adapter.networks(), spec.tuning, targets, sets, spec.run.seed, start=start)
