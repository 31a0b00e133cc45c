"""What a run measures: rewards, losses, and the seconds of every phase."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowfactory.metrics.gauge import Gauge
from flowfactory.runs import files
from flowfactory.runs.files import writing


class Clock:
    """Seconds and peak memory of each phase since the last `read`. On CUDA a phase ends when its kernels have.

    phase: the one that is running, "" between two.
    """

    def __init__(self, device: torch.device) -> None:
        self.phase = ""
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._bytes: dict[str, int] = defaultdict(int)
        self.gauge = Gauge(device)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.gauge.reset()
        self.phase, outer = phase, self.phase
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phase = outer
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds[phase] += time.perf_counter() - start
            self._bytes[phase] = max(self._bytes[phase], self.gauge.peak())

    def read(self) -> dict[str, float]:
        """`time/<phase>` in seconds and `memory/<phase>` in bytes (see `Gauge`); starts again from zero."""
        seconds = {f"time/{phase}": value for phase, value in self._seconds.items()}
        peaks = {f"memory/{phase}": float(value) for phase, value in self._bytes.items()}
        self._seconds.clear()
        self._bytes.clear()
        return seconds | peaks


class Stopwatch:
    """Seconds inside the networks: their forward passes, and whatever runs under `backward`.

    They are part of the phases' seconds, not beside them. On CUDA events on the device take the times, so that
    measuring waits for nothing.
    """

    def __init__(self, networks: Iterable[nn.Module], clock: Clock) -> None:
        self._clock = clock
        self._cuda = torch.cuda.is_available()
        self._started: list[Any] = []
        self._spans: list[tuple[str, Any, Any]] = []
        for network in networks:
            network.register_forward_pre_hook(lambda *_: self._start())
            network.register_forward_hook(lambda *_: self._stop(), always_call=True)

    @contextmanager
    def backward(self) -> Iterator[None]:
        """A backward pass, of which all but the loss is the network's."""
        self._start()
        try:
            yield
        finally:
            self._stop()

    def read(self) -> dict[str, float]:
        """`network/seconds` since the last reading, and of them `network/seconds/<phase>`."""
        if self._cuda:
            torch.cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for phase, start, end in self._spans:
            spent = start.elapsed_time(end) / 1000 if self._cuda else end - start
            seconds["network/seconds"] += spent
            seconds[f"network/seconds/{phase}"] += spent
        self._spans.clear()
        return dict(seconds)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _start(self) -> None:
        self._started.append(self._now())

    def _stop(self) -> None:
        if len(self._started) == 1:  # a forward pass inside a backward pass (checkpointing) is not counted twice
            self._spans.append((self._clock.phase, self._started[0], self._now()))
        self._started.pop()


class Means:
    """Weighted means of named scalars. Values stay on their device until read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Take note of `values`, each a scalar."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value.detach())) + value.detach() * weight
            self._weights[name] += weight

    def totals(self) -> dict[str, tuple[float, float]]:
        """Weighted sum and weight of each name."""
        return {name: (float(total), self._weights[name]) for name, total in self._sums.items()}


def merge(totals: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
    """The mean of each name over the totals of several processes, which need not all have it."""
    names = list(dict.fromkeys(name for one in totals for name in one))
    means = {}
    for name in names:
        values, weights = zip(*(one[name] for one in totals if name in one), strict=True)
        means[name] = math.fsum(values) / math.fsum(weights)
    return means


def score_metrics(prefix: str, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """`<prefix>/<label>/mean` and `/std` of scores `(N,)`, leaving out NaN."""
    metrics = {}
    for label, values in scores.items():
        known = values[~values.isnan()]
        if len(known):
            metrics[f"{prefix}/{label}/mean"] = float(known.mean())
            metrics[f"{prefix}/{label}/std"] = float(known.std(correction=0))
    return metrics


def group_metrics(scores: Mapping[str, Tensor], groups: Tensor) -> dict[str, float]:
    """Signs that a reward has no more to teach: `reward/<label>/saturation` and `reward/<label>/zero_std_groups`.

    Saturation is the share of samples tied at the highest score of the epoch; a single best one is no tie.
    """
    metrics = {}
    for label, values in scores.items():
        known = values[~values.isnan()]
        if len(known):
            ties = int((known == known.max()).sum())
            metrics[f"reward/{label}/saturation"] = ties / len(known) if ties > 1 else 0.0
            metrics[f"reward/{label}/zero_std_groups"] = zero_std_groups(values, groups)
    return metrics


def zero_std_groups(values: Tensor, groups: Tensor) -> float:
    """Share of the groups with a value in which no sample is better than another: nothing can be learned from them."""
    equal = []
    for group in sorted(set(groups.tolist())):
        known = values[(groups == group) & ~values.isnan()]
        if len(known):
            equal.append(bool((known == known[0]).all()))
    return sum(equal) / len(equal) if equal else 0.0


def diversity(media: Sequence[Tensor], side: int = 32) -> float:
    """How far the samples of a group lie apart: the root mean square difference of two of them, in [0, 1].

    Differences are of pixels, averaged down to `side` x `side` where there are more.
    """
    if len(media) < 2:
        return 0.0
    images = torch.stack(list(media)).flatten(0, -4)
    height, width = (min(side, length) for length in images.shape[-2:])
    small = nn.functional.adaptive_avg_pool2d(images, (height, width)).reshape(len(media), -1)
    return float((2 * small.var(0).mean()).sqrt())


class MetricsFile:
    """`metrics.jsonl`: one line per epoch. A `flowfactory.metrics.track.Tracker`.

    Args:
        epochs_done: lines of later epochs are dropped; a resumed run makes them again.
        write: whether this process writes at all.
    """

    def __init__(self, path: Path, epochs_done: int, write: bool) -> None:
        self._path, self._write = path, write
        if write:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and epochs_done else []
            kept = [line + "\n" for line in lines if _epoch(line) <= epochs_done]
            with writing(path):
                files.write(path, "".join(kept).encode())

    def lines(self) -> list[dict[str, float]]:
        """The lines so far."""
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the line of epoch `step`, and wait until it is on the disk: a checkpoint may follow."""
        if self._write:
            with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": step, **metrics}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def finish(self) -> None:
        """Nothing is left to be done: every line is written when it is made."""


def _epoch(line: str) -> float:
    """The epoch of a line; infinity where it was cut short, as by a kill: it is made again."""
    try:
        return float(json.loads(line)["epoch"])
    except ValueError:
        return math.inf
