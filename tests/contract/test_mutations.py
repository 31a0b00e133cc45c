"""Hundreds of broken specs: refused before torch is imported, or valid after all. See `mutations.py`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import mutations
import pytest
from flowfactory.discovery.registry import Registry
from flowfactory.errors import BAD_PLUGIN, SpecError
from flowfactory.spec.structure import load_spec
from specs import lay

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = [
    path
    for path in sorted(ROOT.glob("plugins/*/examples/*.toml"))
    if {"run", "extends"} & tomllib.loads(path.read_text(encoding="utf-8")).keys()  # not what others only extend
]


def survey(*arguments: str) -> Counter[str]:
    """What became of the mutants of some specs, in an interpreter that cannot import torch."""
    command = [sys.executable, mutations.__file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    total: Counter[str] = Counter()
    for name, result in json.loads(done.stdout).items():
        assert not result["complaints"], f"{name}\n" + "\n".join(result["complaints"])
        total.update(result["counts"])
    refused = sum(count for name, count in total.items() if name.startswith("refused"))
    print(f"\n{total.total()} mutants, {refused} refused before torch; the others are valid specs")
    print("\n".join(f"  {name}: {count}" for name, count in sorted(total.items())))
    return total


def test_every_mutation_of_a_whole_spec(tmp_path: Path) -> None:
    counts = survey(str(lay(tmp_path)))
    assert counts.total() > 600
    assert {f"accepted: {name}" for name in mutations.NEVER}.isdisjoint(counts)


def test_mutations_of_every_example(tmp_path: Path) -> None:
    """Of every example whose plugins are installed."""
    for plugin in sorted({path.parent for path in EXAMPLES}):
        shutil.copytree(plugin, tmp_path / plugin.parent.name / "examples")
    specs = [tmp_path / path.relative_to(ROOT / "plugins") for path in EXAMPLES]
    ready = [str(spec) for spec in specs if not missing(spec)]
    assert ready
    assert survey("--few", *ready).total() > 30 * len(ready)


def missing(spec: Path) -> bool:
    """Whether plugins of an example are not installed; anything else wrong with it is a failure."""
    try:
        load_spec(spec, Registry())
    except SpecError as error:
        if error.code != BAD_PLUGIN:
            raise
        return True
    return False
