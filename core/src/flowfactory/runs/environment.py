"""What a run depends on beside its spec: versions, the machine, and, when asked, its devices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from packaging.requirements import Requirement

from flowfactory.discovery.entries import Entry

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "FLOWFACTORY_CACHE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "RANK",
    "WORLD_SIZE",
)
"""Environment variables that change what a run does, none of them secret."""


def metadata(entries: Sequence[Entry]) -> dict[str, Any]:
    """Where it runs, and versions of Python, core, what core requires and every plugin. Imports none of them."""
    return {
        "flowfactory": importlib.metadata.version("flowfactory"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "executable": sys.executable,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "packages": packages(),
        "plugins": {entry.source.name: entry.source.version for entry in entries},
    }


def packages() -> dict[str, str | None]:
    """Versions of what core requires, `None` where it is not installed."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("flowfactory") or ()]
    return {r.name: _version(r.name) for r in sorted(requirements, key=lambda r: r.name) if not r.marker}


def devices() -> dict[str, Any]:
    """What torch can compute on. Imports torch."""
    import torch

    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
