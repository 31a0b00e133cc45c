"""What one of two processes does that torchrun has started: several commands of flowfactory, to import torch once.

The only argument is JSON: a list of commands, among them `["fork", FOLDER, NEW]` for a copy of a run without its last
checkpoint, `["divided"]` and `["teams"]` for what those modules check, and `["counted", FILE, …]` for a command whose
messages are counted.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import divided
import pytest
import teams
import torch
from accelerate.state import AcceleratorState
from flowfactory.cli.main import main

CHECKS: dict[str, Callable[[], None]] = {"divided": divided.check, "teams": teams.check}


def fork(folder: Path, new: Path) -> None:
    """A copy of a run as it was when its last checkpoint had not been written."""
    shutil.copytree(folder, new)
    shutil.rmtree(sorted((new / "checkpoints").iterdir())[-1])


def do(command: Sequence[str]) -> int:
    """One command; its exit code."""
    if command[0] in CHECKS:
        CHECKS[command[0]]()
        return 0
    if command[0] == "fork":
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            fork(Path(command[1]), Path(command[2]))
        torch.distributed.barrier()
        return 0
    AcceleratorState._reset_state(True)
    if command[0] == "counted":
        return counted(Path(command[1]), command[2:])
    return main(command)


def counted(file: Path, command: Sequence[str]) -> int:
    """A command; the first process writes the bytes of each message that went round, whole, by the name of its call."""
    sizes: dict[str, list[int]] = {"all_reduce": [], "all_gather_single": [], "reduce_scatter_single": []}

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(torch.distributed, name)

        def call(*given: Any, **named: Any) -> Any:
            tensors = [value for value in (*given, *named.values()) if isinstance(value, torch.Tensor)]
            sizes[name].append(max(tensor.nbytes for tensor in tensors))
            return real(*given, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in sizes:
            patch.setattr(torch.distributed, name, counting(name))
        code = main(command)
    if torch.distributed.get_rank() == 0:
        file.write_text(json.dumps(sizes))
    return code


if __name__ == "__main__":
    sys.exit(next((code for code in map(do, json.loads(sys.argv[1])) if code), 0))
