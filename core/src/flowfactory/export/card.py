"""The model card of an export: what it is, how it was made, what it scored, how to load it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowfactory.plan.plan import PLAN_FILE, SPEC_FILE
from flowfactory.report.curves import HELD_OUT, REWARD, sections
from flowfactory.report.plots import draw
from flowfactory.runs.history import read
from flowfactory.spec.tables import Lora, Spec

CARD = "README.md"
SHEET = "before-after.png"


def write_card(folder: Path, run: Path, spec: Spec, weights: str, epoch: int, loading: str, checked: str) -> None:
    """Write `folder/README.md`, and beside it the curves, and the sheet of samples if the run made one.

    Args:
        run: the run's folder. weights: in words, which were exported. epoch: from when they are.
        loading: Python that loads the export. checked: how it was compared with what was trained.
    """
    plan = json.loads((run / PLAN_FILE).read_text(encoding="utf-8"))
    parts = [
        _front(spec),
        f"# {spec.run.name}\n",
        f"{_what(spec)} of `{_base(spec)}`, fine-tuned by reinforcement learning with the algorithm "
        f"`{spec.trainer.name}` for {_rewards(spec)}. These are the weights {weights}.\n",
        "## How to load it\n",
        f"```python\n{loading}\n```\n",
        f"{checked}\n",
        *_scores(run, epoch),
        *_curves(folder, run),
        *_samples(folder, run),
        "## How it was made\n",
        f"```toml\n{(run / SPEC_FILE).read_text(encoding='utf-8').strip()}\n```\n",
        _table(("package", "version"), sorted(_versions(plan, run).items())),
        f"Plan digest: `{plan['digest']}`\n",
    ]
    (folder / CARD).write_text("\n".join(parts), encoding="utf-8")


def _front(spec: Spec) -> str:
    lines = ["---", "library_name: diffusers"]
    if not Path(_base(spec)).is_absolute():
        lines.append(f"base_model: {_base(spec)}")
    tags = ["reinforcement-learning", "flow-matching", "flowfactory", *(["lora"] if _lora(spec) else [])]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---\n"])


def _what(spec: Spec) -> str:
    own = spec.tuning
    return f"A LoRA of rank {own.rank} and alpha {own.alpha:g}" if isinstance(own, Lora) else "The full weights"


def _lora(spec: Spec) -> bool:
    return isinstance(spec.tuning, Lora)


def _base(spec: Spec) -> str:
    return str(spec.model.spec.path)


def _rewards(spec: Spec) -> str:
    return ", ".join(f"`{entry.label}` (weight {entry.weight:g})" for entry in spec.rewards)


def _scores(run: Path, epoch: int) -> list[str]:
    """Every score's mean when training began and at the exported epoch."""
    (past,) = read([run])
    rows = []
    for name in sorted(name for name in past.names() if name.endswith("/mean")):
        values = {n: value for n, value in past.series(name) if n <= epoch and math.isfinite(value)}
        if values:
            first, last = min(values), max(values)
            rows.append((name.removesuffix("/mean"), f"{values[first]:.4f} ({first})", f"{values[last]:.4f} ({last})"))
    return ["## Scores\n", _table(("mean", "before (epoch)", "after (epoch)"), rows)] if rows else []


def _curves(folder: Path, run: Path) -> list[str]:
    shown = [section for section in sections(read([run])) if section.name in (REWARD, HELD_OUT)]
    pictures = [(section, file.name) for section, file in zip(shown, draw(shown, folder), strict=True)]
    text = [f"{section.about}\n\n![{section.name}]({picture})\n" for section, picture in pictures]
    return ["## Curves\n", *text] if text else []


def _samples(folder: Path, run: Path) -> list[str]:
    if not (run / SHEET).is_file():
        return []
    shutil.copyfile(run / SHEET, folder / SHEET)
    return ["## Samples\n", f"Held-out prompts, the same noise before and after:\n\n![before and after]({SHEET})\n"]


def _versions(plan: Mapping[str, Any], run: Path) -> dict[str, str]:
    """Of the plugins as planned, and of the libraries underneath."""
    libraries = json.loads((run / "env.json").read_text()).get("packages", {}) if (run / "env.json").is_file() else {}
    return {**{name: version for name, version in libraries.items() if version}, **plan["versions"]}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
