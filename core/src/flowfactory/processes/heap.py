"""What glibc does with memory that tensors in main memory leave: by itself it gives it back, and asks for it again.

What comes anew comes page by page, cleared. Decoders, whose activations are many and large, lose a third of their time.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

KEPT = 256 * 1024 * 1024
"""Bytes that a process keeps for what comes next, at most."""

_TRIM, _MAP = -1, -3
_MAPPED = 32 * 1024 * 1024
"""From here on an allocation is the system's own, returned when it is freed; by itself glibc goes as far."""


def keep(environment: Mapping[str, str] = os.environ) -> None:
    """Keep up to `KEPT` freed bytes, unless the environment says how glibc allocates; elsewhere do nothing."""
    said = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in environment)
    if platform.libc_ver()[0] == "glibc" and not said:
        library = ctypes.CDLL(None)
        library.mallopt(_MAP, _MAPPED)
        library.mallopt(_TRIM, KEPT)
