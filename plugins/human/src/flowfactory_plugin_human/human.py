"""A person as a reward: grades, or an order of the samples of a prompt.

grade g of n levels:  s = g / (n - 1)
place in a group of K:  s = (#worse + #equal / 2) / (K - 1)                      in [0, 1]; of one: 1 / 2
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from flowfactory import GroupReward, Reward, RewardError, Sample, Score, Shared, to_bytes
from PIL import Image, ImageOps
from torch import Tensor

from flowfactory_plugin_human import HumanGroupSpec, HumanSpec
from flowfactory_plugin_human.desk import Desk, Task
from flowfactory_plugin_human.server import Server

log = logging.getLogger("flowfactory")

FRAME = 125
"""Milliseconds that a frame of a video is shown."""


class Page:
    """A desk, and the page where people see it."""

    def __init__(self, port: int) -> None:
        self.desk = Desk()
        try:
            self.server = Server(self.desk, port)
        except OSError as error:
            what = f"port {port} for the page cannot be had: {error.strerror}"
            raise RewardError(f"{what}; set `port` to another, or to 0 for any that is free") from error
        log.warning("people are asked at %s", self.server.url)

    def ask(self, tasks: Sequence[Task], spec: HumanGroupSpec) -> None:
        """Have people answer.

        Raises:
            RewardError: nobody has in time, and that is a failure.
        """
        if not self.desk.ask(tasks, spec.patience) and spec.absent == "fail":
            missing = sum(not task.answered for task in tasks)
            what = f"{missing} of {len(tasks)} questions were not answered within {spec.patience:g} s"
            raise RewardError(f"{what}; the page is {self.server.url}")


def page_of(spec: HumanGroupSpec, shared: Shared) -> Page:
    """The page of a port, one for all tables that name it."""
    page: Page = shared(f"people:{spec.port}", lambda: Page(spec.port))
    return page


class Human(Reward):
    """A person's grade of each sample."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt", "images"})
    spec: HumanSpec
    page: Page

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.page = page_of(self.spec, shared)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        spec = self.spec
        tasks = [Task("grade", spec.question, s.row.prompt, given(s), [picture(s.media)], spec.levels) for s in samples]
        if tasks:
            self.page.ask(tasks, spec)
        return [None if task.answer is None else task.answer / (spec.levels - 1) for task in tasks]


class HumanGroup(GroupReward):
    """The place of each sample in the order that a person puts its group in. Nobody is told which is which."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt", "images"})
    spec: HumanGroupSpec
    page: Page

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.page = page_of(self.spec, shared)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        if len(samples) == 1:
            return [0.5]
        pictures = [picture(sample.media) for sample in samples]
        order = sorted(range(len(samples)), key=lambda i: hashlib.sha256(pictures[i]).digest())
        shown = [pictures[i] for i in order]
        task = Task("order", self.spec.question, samples[0].row.prompt, given(samples[0]), shown)
        self.page.ask([task], self.spec)
        if task.answer is None:
            return [None] * len(samples)
        found = places(len(samples), task.answer)
        return [found[order.index(i)] for i in range(len(samples))]


def places(count: int, best_first: Sequence[int]) -> list[float]:
    """A score for each of `count`, of which some are named from the best on; the others share what is left."""
    others = count - len(best_first)
    shared = (others - 1) / 2 / (count - 1) if others else 0.0
    named = {number: (count - 1 - rank) / (count - 1) for rank, number in enumerate(best_first)}
    return [named.get(number, shared) for number in range(count)]


def given(sample: Sample) -> list[bytes]:
    """What an edit was made of, as PNG files."""
    return [_file(path) for path in sample.row.images]


def picture(media: Tensor) -> bytes:
    """An image as PNG; a video as one that moves."""
    frames = media if media.dim() == 4 else media[None]
    pictures = [Image.fromarray(frame) for frame in to_bytes(frames).permute(0, 2, 3, 1).cpu().numpy()]
    buffer = io.BytesIO()
    if len(pictures) == 1:
        pictures[0].save(buffer, "PNG")
    else:
        pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:], duration=FRAME, loop=0)
    return buffer.getvalue()


def _file(path: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as opened:
        ImageOps.exif_transpose(opened).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
