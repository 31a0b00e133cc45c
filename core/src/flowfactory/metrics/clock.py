"""Seconds and peak memory of every phase, and seconds inside the networks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flowfactory.metrics.gauge import Gauge


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
        del self._started[-1:]  # none where the pass was stopped before it began
