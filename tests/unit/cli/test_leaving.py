"""How a process ends: at once, but after all that others want done at its end, and with its own code."""

from __future__ import annotations

import subprocess
import sys

import pytest

ENDS = """
import atexit, sys, time
from flowfactory.cli.leaving import process

class Slow:
    def __del__(self, write=sys.stderr.write):
        write("taken apart")

def work():
    sys.modules["slow"] = Slow()
    atexit.register(print, "at its end")
    print("no end of line", end="")
    {what}

process(work)
"""


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("return 75", 75, ""),
        ("return 0", 0, ""),
        ("raise ValueError('mine')", 1, "ValueError: mine"),
        ("sys.exit(3)", 3, ""),
        ("sys.stdout.close(); return 4", 4, ""),
    ],
)
def test_a_process_ends_with_its_code_and_takes_nothing_apart(what: str, code: int, said: str) -> None:
    program = [sys.executable, "-c", ENDS.format(what=what)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    if "close" not in what:
        assert done.stdout == "no end of lineat its end\n"
    assert ("taken apart" in done.stderr) == what.startswith(("raise", "sys.exit")), "by Python alone"


def test_who_dies_of_a_fault_in_machine_code_says_where() -> None:
    work = "import ctypes\nfrom flowfactory.cli.leaving import process\ndef mine(): ctypes.string_at(0)\nprocess(mine)"
    program = [sys.executable, "-c", work]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode < 0
    assert "Segmentation fault" in done.stderr
    assert "in mine" in done.stderr
