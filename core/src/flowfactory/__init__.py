"""flowfactory: reinforcement-learning fine-tuning of flow-matching models, from plugins and a TOML spec.

Public names load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "flowfactory.hooks": ("Provides", "hookimpl"),
    "flowfactory.spec": (
        "AdapterSpec", "Decay", "DecoupledSpec", "Location", "Needs", "NoKeys", "SchedulerSpec", "Size",
        "Spec", "StochasticSpec", "Times", "TrainerSpec", "Window", "key",
    ),
    "flowfactory.types": ("Batch", "Conditions", "Loss", "Rollout", "Row", "Sample", "Update"),
    "flowfactory.adapter": ("Adapter",),
    "flowfactory.pipeline": ("PipelineAdapter",),
    "flowfactory.scheduler": ("Moments", "Scheduler", "StochasticScheduler"),
    "flowfactory.reward": ("GroupReward", "Reward"),
    "flowfactory.trainer": ("Policy", "Scores", "Trainer"),
    "flowfactory.seeds": ("Draws",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowfactory' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
