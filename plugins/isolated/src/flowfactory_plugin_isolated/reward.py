"""A reward that a function in another environment computes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from flowfactory import Reward, RewardError, Sample, Score, Shared

from flowfactory_plugin_isolated import Scorer
from flowfactory_plugin_isolated.environments import BuildError, host_wheel, python_of
from flowfactory_plugin_isolated.process import Keeper

log = logging.getLogger("flowfactory")

BRIGHT = """
from PIL import ImageStat


def score(images, prompts, rows):
    return [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]
"""


class Keys(Scorer, Protocol):
    """A scorer, and how long it is waited for."""

    @property
    def start_timeout(self) -> float: ...
    @property
    def request_timeout(self) -> float: ...
    @property
    def restarts(self) -> int: ...


class Isolated(Reward):
    """Scores each sample by a function in a process of its own; tables that say the same share it."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt", "images"})
    spec: Keys
    keeper: Keeper

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        spec = self.spec
        try:
            python = python_of(spec, log.warning)
        except BuildError as error:
            raise RewardError(str(error)) from error  # with all of the installer's words
        times = spec.start_timeout, spec.request_timeout, spec.restarts

        def start() -> Keeper:
            return Keeper(python, host_wheel(), spec.score, str(device), *times)

        self.keeper = shared(f"scorer {python} {spec.score} {times}", start)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return self.keeper.score(samples) if samples else []

    @classmethod
    def tiny(cls, folder: Path) -> Mapping[str, Any]:
        (folder / "bright.py").write_text(BRIGHT)
        return {"score": f"{folder / 'bright.py'}:score", "environment": sys.prefix}
