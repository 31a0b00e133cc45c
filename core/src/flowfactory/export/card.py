"""The model card of an export: what it is, how it was made, what it scored, how to load it."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, hf_hub_download

from flowfactory.export.words import base_id, base_name, task
from flowfactory.plan.plan import SPEC_FILE
from flowfactory.runs.files import inside
from flowfactory.runs.history import packages, read_runs
from flowfactory.spec import toml
from flowfactory.spec.tables import Full, Lora, Spec

CARD = "README.md"
SHEET = "before-after.png"
DRAWN = "report-curves"
"""Where a report on a run leaves its curves."""

CURVES = {
    "reward.png": ("Reward", "The mean over the training samples of each epoch, and one standard deviation of them."),
    "held-out-evaluation.png": ("Held-out evaluation", "The same of held-out prompts, sampled without noise."),
}


def write_card(
    folder: Path, run: Path, spec: Spec, weights: str, epoch: int, loading: str, checked: str, edits: bool
) -> None:
    """Write `folder/README.md`, and beside it the curves if a report was made, and the run's sheet of samples, if any.

    Args:
        run: the run's folder. weights: in words, which were exported. epoch: from when they are.
        loading: Python that loads the export, if any does. checked: how it was compared with what was trained.
        edits: whether the model edits images.
    """
    plan = read_runs([run])[0].plan
    made = toml.dumps(portable(plan["spec"], run)).strip()
    parts = [
        _front(spec, edits),
        f"# {spec.run.name}\n",
        f"{_what(spec)} of {coded(base_name(spec))}, fine-tuned by reinforcement learning with the algorithm "
        f"`{spec.trainer.name}` for {_rewards(spec)}. These are the weights {weights}.\n",
        "## How to load it\n",
        *([fenced("python", loading)] if loading else []),
        f"{checked}\n",
        *_scores(run, epoch),
        *_curves(folder, run),
        *_samples(folder, run),
        "## How it was made\n",
        fenced("toml", made),
        _table(("package", "version"), sorted(_versions(plan, run).items())),
        f"Plan digest: `{plan['digest']}`\n",
    ]
    (folder / CARD).write_text("\n".join(parts), encoding="utf-8")


def write_spec(folder: Path, run: Path, spec: Spec, base: str) -> None:
    """Write `folder/spec.toml`, what was run, for those who compute with the export. base: where its base model is."""
    made = portable(read_runs([run])[0].plan["spec"], run)
    made["model"] |= {"path": base}
    made["run"] |= {"precision": spec.run.precision}
    (folder / SPEC_FILE).write_text(toml.dumps(made), encoding="utf-8")


def _front(spec: Spec, edits: bool) -> str:
    base = base_id(spec)
    tags = ["reinforcement-learning", "flow-matching", "flowfactory", *(["lora"] if _lora(spec) else [])]
    facts: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": task(spec, edits), "tags": tags}
    facts |= {"base_model": base, "base_model_relation": "adapter" if _lora(spec) else "finetune"} if base else {}
    facts |= _licence(spec)
    return f"---\n{ModelCardData(**facts).to_yaml()}\n---\n"


def _licence(spec: Spec) -> dict[str, Any]:
    """What the base model's own card says; where it cannot be read, that it is the base model's."""
    own, facts = spec.model.spec, {}
    with suppress(Exception):  # of whatever library the connection to the hub is made with
        card = Path(own.path) / CARD
        if not Path(own.path).is_absolute():
            card = Path(hf_hub_download(own.path, CARD, revision=own.revision))
        head = re.match(r"---\n(.*?)\n---\n", card.read_text(encoding="utf-8-sig"), re.DOTALL)
        facts = dict(re.findall(r"(?m)^(license\w*):[ \t]*([^\s#'\"\[]+)[ \t]*$", head[1])) if head else {}
    said = {key: str(facts[key]) for key in ("license", "license_name", "license_link") if facts.get(key)}
    if "license" not in said:
        said = {"license": "other", "license_name": "as-the-base-model"}
    if (base := base_id(spec)) and said["license"] == "other" and "license_link" not in said:
        said["license_link"] = f"https://huggingface.co/{base}"
    return said


def portable(value: Any, run: Path) -> Any:
    """A spec's plain data without this machine's places: of absolute paths the last part stays."""
    if isinstance(value, Mapping):
        return {key: portable(entry, run) for key, entry in value.items()}
    if isinstance(value, list):
        return [portable(entry, run) for entry in value]
    if isinstance(value, str) and (value.startswith("~/") or Path(value).is_absolute()):
        return Path(value).name
    return value


def fenced(language: str, text: str) -> str:
    """A block of code, whatever backquotes it has in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}\n"


def coded(text: str) -> str:
    """A few words of code in a line."""
    marks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks} {text} {marks}" if len(marks) > 1 else f"`{text}`"


def _what(spec: Spec) -> str:
    own = spec.tuning
    began = f", begun with `{Path(own.from_).name}`," if own.from_ else ""
    if isinstance(own, Full):
        return f"The full weights{began}"
    return f"A LoRA{began}" if own.from_ else f"A LoRA of rank {own.rank} and alpha {own.alpha:g}"


def _lora(spec: Spec) -> bool:
    return isinstance(spec.tuning, Lora)


def _rewards(spec: Spec) -> str:
    counts = {e.label: f"weight {e.weight:g}" if e.weight else "watched only" for e in spec.rewards}
    return ", ".join(f"`{label}` ({how})" for label, how in counts.items())


def _scores(run: Path, epoch: int) -> list[str]:
    """Every score's mean when training began and at the exported epoch."""
    (past,) = read_runs([run])
    rows = []
    for name in sorted(name for name in past.names() if name.endswith("/mean")):
        values = {n: value for n, value in past.series(name) if n <= epoch and math.isfinite(value)}
        if values:
            first, last = min(values), max(values)
            rows.append((name.removesuffix("/mean"), f"{values[first]:.4f} ({first})", f"{values[last]:.4f} ({last})"))
    return ["## Scores\n", _table(("mean", "before (epoch)", "after (epoch)"), rows)] if rows else []


def _curves(folder: Path, run: Path) -> list[str]:
    drawn = [name for name in CURVES if inside(run, run / DRAWN / name)]
    for name in drawn:
        shutil.copyfile(run / DRAWN / name, folder / name)
    text = [f"{CURVES[name][1]}\n\n![{CURVES[name][0]}]({name})\n" for name in drawn]
    return ["## Curves\n", *text] if text else []


def _samples(folder: Path, run: Path) -> list[str]:
    if not (run / SHEET).is_file():
        return []
    shutil.copyfile(run / SHEET, folder / SHEET)
    return ["## Samples\n", f"Held-out prompts, the same noise before and after:\n\n![before and after]({SHEET})\n"]


def _versions(plan: Mapping[str, Any], run: Path) -> dict[str, str]:
    """Of the plugins as planned, and of the libraries underneath."""
    return {**packages(run), **plan["versions"]}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
