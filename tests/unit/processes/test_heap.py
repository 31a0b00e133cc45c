"""What tensors leave in main memory is there for the next ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from flowfactory.processes import heap
if sys.argv[1] == "kept":
    heap.keep({})
elif sys.argv[1] == "said":
    heap.keep({"MALLOC_TRIM_THRESHOLD_": "0"})

def used():
    held = [b"x" * (4 << 20) for _ in range(32)]

used()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    used()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faulted(how: str) -> int:
    """Pages that came anew, of those of eight times 128 MiB."""
    ran = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux'")
def test_memory_comes_back_without_the_system() -> None:
    """Unless the environment says how glibc allocates; glibc by itself shows that the measure can fail."""
    alone, said, kept = (faulted(how) for how in ("alone", "said", "kept"))
    assert kept * 4 < min(alone, said)
