"""Rewards outside a run, for those who serve them or look at what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

from flowfactory.contracts.key import Precision
from flowfactory.discovery.registry import Registry
from flowfactory.processes.distributed import DTYPES
from flowfactory.rewards.asking import Asked
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.structure import load_rewards


def open_rewards(spec: Path, device: str = "cpu", dtype: Precision = "fp32") -> Sequence[Asked]:
    """The rewards of a spec's `[[reward]]` tables, loaded; the rest of the spec is not read.

    All of the rewards score all samples, from any source.

    Args:
        device, dtype: for the rewards whose tables do not set them.

    Raises:
        SpecError: a table is wrong. PluginError: a plugin is missing or broken. RewardError: one cannot be loaded.
    """
    registry = Registry()
    entries = [attrs.evolve(entry, sources=None) for entry in load_rewards(spec, registry)]
    judge = Judge(entries, {entry.name: registry.target("rewards", entry.name) for entry in entries}, {})
    judge.load(torch.device(device), DTYPES[dtype])
    return judge.rewards
