"""One of several processes: `python -P -m flowfactory.cli.worker PARENT …`. It does not outlive who started it."""

from __future__ import annotations

import sys

from flowfactory.processes.parent import watch


def main(parent: str, *arguments: str) -> int:
    """`flowfactory` with these arguments."""
    watch(int(parent))
    from flowfactory.cli.main import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
