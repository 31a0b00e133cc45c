"""The measurements of `make gpu`: one part after the other, each in a process of its own, what is done is kept.

    python tests/gpu/suite.py [--to FOLDER] [--tiny] [PART …]     measure what is not there yet
    python tests/gpu/suite.py --table [--to FOLDER]               what is there, as a table for docs/performance.md

A part leaves `<part>.json`: rows of figures, with card, command and versions. One that fails or takes longer than two
minutes leaves none; what it said last is shown, the next one follows, and a further call tries it again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT = 120
"""Seconds of a part."""

NAMES = (
    "ratio",
    "flux",
    "preprocessing",
    "qwen",
    "wan",
    "memory",
    "kinds",
    "rollouts",
    "streaming",
    "resting",
    "verbs",
)
PACKAGES = ("flowfactory", "torch", "diffusers", "transformers", "peft")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or make the table; 1 where a part failed."""
    parser = argparse.ArgumentParser(description="Measure flowfactory on a GPU.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(NAMES)}; all where none is named")
    parser.add_argument("--to", type=Path, default=Path("docs/results/gpu"), help="where results lie")
    parser.add_argument("--tiny", action="store_true", help="at the smallest sizes, which a CPU does in seconds")
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    parser.add_argument("--here", action="store_true", help="the one part named, in this process")
    own = parser.parse_args(arguments)
    if unknown := [name for name in own.parts if name not in NAMES]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if own.table:
        print(table(own.to))
        return 0
    if own.here:
        return measure(own.parts[0], own.to, own.tiny)
    return max([apart(name, own.to, own.tiny) for name in own.parts or NAMES])


def apart(name: str, to: Path, tiny: bool) -> int:
    """A part in a process of its own, unless its result is there."""
    if (to / f"{name}.json").is_file():
        print(f"{name}: is there")
        return 0
    command = [sys.executable, __file__, "--here", "--to", str(to), *(["--tiny"] if tiny else []), name]
    try:
        ended = subprocess.run(command, timeout=LIMIT, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name}: took longer than {LIMIT} s")
        return 1
    said = (ended.stderr or ended.stdout).strip().splitlines()
    print(f"{name}: " + (f"failed: {said[-1] if said else ended.returncode}" if ended.returncode else "done"))
    return 1 if ended.returncode else 0


def measure(name: str, to: Path, tiny: bool) -> int:
    """A part in this process; its result is written whole or not at all."""
    import torch

    sys.path.insert(0, str(HERE))
    import parts

    with tempfile.TemporaryDirectory() as folder:
        rows, seconds = parts.timed(name, Path(folder), tiny)
    cuda = torch.cuda.is_available()
    result = {
        "part": name,
        "card": torch.cuda.get_device_name() if cuda else "none: a CPU",
        "tiny": tiny,
        "command": f"python tests/gpu/suite.py {'--tiny ' if tiny else ''}{name}",
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES}
        | {"cuda": torch.version.cuda},
        "seconds": seconds,
        "rows": rows,
    }
    to.mkdir(parents=True, exist_ok=True)
    partial = to / f".{name}.json"
    partial.write_text(json.dumps(result, indent=2) + "\n")
    partial.replace(to / f"{name}.json")
    return 0


def results(to: Path) -> Iterator[dict[str, Any]]:
    """What is there, in the order of the parts."""
    for name in NAMES:
        if (file := to / f"{name}.json").is_file():
            yield json.loads(file.read_text())


def table(to: Path) -> str:
    """What is there in Markdown: every row with its figures, card, command and versions."""
    lines = ["| what | figures | card | command | versions |", "|---|---|---|---|---|"]
    for result in results(to):
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
        card = result["card"] + (", tiny" if result["tiny"] else "")
        for row in result["rows"]:
            figures = "; ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "what")
            lines.append(f"| {row['what']} | {figures} | {card} | `{result['command']}` | {versions} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
