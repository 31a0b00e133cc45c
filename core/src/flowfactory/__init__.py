"""flowfactory: reinforcement-learning fine-tuning of flow-matching models, from plugins and a TOML spec.

Public names load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "flowfactory.contracts.hooks": ("Provides", "hookimpl"),
    "flowfactory.contracts.key": ("Location", "Size", "key"),
    "flowfactory.contracts.specs": (
        "AdapterSpec", "Decay", "DecoupledSpec", "Needs", "NoKeys", "SchedulerSpec", "StochasticSpec", "Times",
        "TrainerSpec", "Window",
    ),
    "flowfactory.spec.tables": ("Spec",),
    "flowfactory.contracts.types": ("Batch", "Conditions", "Loss", "Rollout", "Row", "Sample", "Update"),
    "flowfactory.contracts.adapter": ("Adapter",),
    "flowfactory.models.pipeline": ("PipelineAdapter",),
    "flowfactory.contracts.scheduler": ("Moments", "Scheduler", "StochasticScheduler"),
    "flowfactory.contracts.reward": ("GroupReward", "Reward"),
    "flowfactory.contracts.trainer": ("Policy", "Scores", "Trainer"),
    "flowfactory.contracts.seeds": ("Draws",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowfactory' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
