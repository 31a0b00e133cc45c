"""What one of two processes does that torchrun has started: several commands of flowfactory, to import torch once.

The only argument is JSON: a list of commands, among them `["fork", FOLDER, NEW]` for a copy of a run without its last
checkpoint, and `["divided"]` for what `divided` checks.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import divided
import torch
from accelerate.state import AcceleratorState
from flowfactory.cli.main import main


def fork(folder: Path, new: Path) -> None:
    """A copy of a run as it was when its last checkpoint had not been written."""
    shutil.copytree(folder, new)
    shutil.rmtree(sorted((new / "checkpoints").iterdir())[-1])


def do(command: Sequence[str]) -> int:
    """One command; its exit code."""
    if command[0] == "divided":
        divided.check()
        return 0
    if command[0] == "fork":
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            fork(Path(command[1]), Path(command[2]))
        torch.distributed.barrier()
        return 0
    AcceleratorState._reset_state(True)
    return main(command)


if __name__ == "__main__":
    sys.exit(next((code for code in map(do, json.loads(sys.argv[1])) if code), 0))
