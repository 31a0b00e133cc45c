"""An interpreter that imports large libraries once, and becomes a fork of itself for each command it is sent.

Its arguments are the modules to import. A line of its stdin is a command as JSON: `arguments`, `cwd`, and the files
`stdout` and `stderr`; a line of its stdout is the exit code of that command.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any


def become(arguments: list[str], cwd: str, stdout: str, stderr: str) -> None:
    """Do what a fresh interpreter does with `python -m …`, `python -c …` or a script of Python's."""
    os.chdir(cwd)
    for number, file in enumerate((os.devnull, stdout, stderr)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    program, *rest = arguments
    if program != "python":
        sys.argv = arguments
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
        return
    option, what, *rest = rest
    sys.argv = [option, *rest]
    sys.path.insert(0, cwd)
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})


def serve() -> dict[str, Any] | None:
    """Answer commands until there are no more; in a fork, the command that is to be done there."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            command: dict[str, Any] = json.loads(line)
            return command
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()
    if (mine := serve()) is not None:
        become(**mine)
