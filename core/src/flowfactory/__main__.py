"""`flowfactory`, and `python -m flowfactory`."""

from __future__ import annotations

from typing import NoReturn

from flowfactory.cli.leaving import process


def main() -> NoReturn:
    """The command line, as a process of its own."""
    process(_main)


def _main() -> int:
    from flowfactory.cli.main import main

    return main()


if __name__ == "__main__":
    main()
