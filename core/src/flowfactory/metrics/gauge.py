"""How much memory a process has in use: allocated on the GPU, or resident in main memory where there is none."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Gauge:
    """The largest number of bytes in use since the last reset.

    On a GPU these are tensors; in main memory, everything resident beyond what the process had when the gauge was made
    (`start`). Where the system does not let a process begin a new peak, that of its whole life stands for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()
        self.start = self._peak()

    def reset(self) -> None:
        """Begin a new peak."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif _CLEAR.exists():
            try:
                _CLEAR.write_text("5")  # Linux: the high water mark falls to what is resident now
            except OSError:
                return

    def peak(self) -> int:
        """Bytes."""
        return self._peak() if self._device.type == "cuda" else max(0, self._peak() - self.start)

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if _STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())):
            return int(found[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
