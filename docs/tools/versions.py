"""The site with its versions: `python docs/tools/versions.py 0.1 FOLDER` adds one, or makes it anew.

FOLDER is what a web server serves. Each version is a folder in it; `versions.json` lists them, the latest first, for
the menu of the theme; `index.html` leads to the latest. Earlier versions stay as they are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[2]
LIST = "versions.json"
FIRST = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={latest}/index.html">
<title>flowfactory</title>
<a href="{latest}/index.html">flowfactory {latest}</a>
</html>
"""


def add(version: str, folder: Path) -> None:
    """Build the site of this checkout into its folder, and list it."""
    if not re.fullmatch(r"\d+\.\d+", version):
        raise SystemExit(f"versions: {version} is no version of the site; say e.g. 0.1")
    there = (folder / version).absolute()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(there)]
    own = {"SITE_VERSIONS": "mike", "NO_MKDOCS_2_WARNING": "1"}  # the theme's name for a list as this one
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **own})
    listed(folder)


def listed(folder: Path) -> None:
    """Write which versions there are, and which opens first."""
    found = [path.parent.name for path in folder.glob("*/index.html") if re.fullmatch(r"\d+\.\d+", path.parent.name)]
    latest, *older = sorted(found, key=Version, reverse=True)
    entries = [{"version": one, "title": one, "aliases": ["latest"] * (one == latest)} for one in (latest, *older)]
    (folder / LIST).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(FIRST.format(latest=latest), encoding="utf-8")


if __name__ == "__main__":
    add(sys.argv[1], Path(sys.argv[2]))
