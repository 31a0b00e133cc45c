"""Experiment trackers, through accelerate; plugins may add others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """What `flowfactory_tracker` returns."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of one epoch."""

    def finish(self) -> None:
        """The run is over."""
