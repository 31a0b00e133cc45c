"""One of several processes: `python -P -m flowfactory.cli.worker PARENT …`. It does not outlive who started it."""

from __future__ import annotations

import sys

from flowfactory.cli.leaving import process
from flowfactory.processes.parent import watch


def main() -> int:
    """`flowfactory` with the arguments after the parent's."""
    parent, *arguments = sys.argv[1:]
    watch(int(parent))
    from flowfactory.cli.main import main

    return main(arguments)


if __name__ == "__main__":
    process(main)
