"""Whether every extra of every package can be installed together, with the pins. Installs nothing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def wanted() -> list[str]:
    """The packages, as pip takes them: `./core[video]`."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flowfactory"]["packages"]
    return [f"./{package}{extras(ROOT / package)}" for package in packages]


def extras(package: Path) -> str:
    """`[a,b]`, or nothing."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    names = sorted(project.get("optional-dependencies", {}))
    return f"[{','.join(names)}]" if names else ""


if __name__ == "__main__":
    print(" ".join(wanted()))
    options = ("--dry-run", "--quiet", "--no-build-isolation", "--constraint", "constraints.txt")
    command = [sys.executable, "-m", "pip", "install", *options, *wanted()]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
