"""Folders as runs leave them, written by hand in milliseconds. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowfactory.discovery.registry import Registry
from flowfactory.plan.plan import make_plan
from flowfactory.spec.structure import load_spec
from PIL import Image
from specs import SPEC, TOY, lay

PROMPTS = ("a red circle", "two blue squares", "a lighthouse")


def lay_run(
    folder: Path,
    epochs: int = 6,
    prompts: Sequence[str] = PROMPTS,
    label: str = "bright",
    frames: int = 1,
    metrics: Mapping[str, float] | None = None,
    spec: str = SPEC,
) -> Path:
    """A finished run: plan, metrics, evaluations at every second epoch, training samples at every one."""
    folder.mkdir(parents=True)
    source = folder.parent / f"{folder.name}-source"
    source.mkdir()
    size = f"size = [32, 48, {frames}]" if frames > 1 else "size = 32"
    registry = Registry()
    text = spec.replace("size = 32", size).replace("epochs = 3", f"epochs = {epochs}")
    made = make_plan(load_spec(lay(source, text, TOY), registry), registry.versions())
    made.write(folder)
    machine: dict[str, Any] = {"packages": {"torch": "2.13.0", "absent": None}}
    (folder / "env.json").write_text(json.dumps(machine))
    lines = [_line(epoch, label, metrics or {}) for epoch in range(epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for epoch in range(epochs + 1):
        if epoch % 2 == 0:
            _samples(folder / "samples" / f"eval-{epoch:04d}", epoch, prompts, label, frames)
        if epoch > 0:
            _samples(folder / "samples" / f"epoch-{epoch:04d}", epoch, prompts[::-1], label, frames)
    return folder


def _line(epoch: int, label: str, metrics: Mapping[str, float]) -> dict[str, float]:
    line: dict[str, float] = {"epoch": epoch, "time/load": 3.0} if epoch == 0 else {"epoch": epoch}
    if epoch % 2 == 0:
        line |= {f"eval/{label}/mean": 0.5 + epoch / 50, f"eval/{label}/std": 0.1, "time/evaluate": 0.5}
    if epoch > 0:
        line |= {f"reward/{label}/mean": 0.4 + epoch / 40 + 0.03 * math.sin(epoch), f"reward/{label}/std": 0.15}
        line |= {"reward/zero_std_groups": 0.0, "loss/policy": 1e-5 * math.cos(epoch), "train/ratio": 1 + 1e-5 * epoch}
        line |= {"lr": 1e-4, "time/sample": 2.0, "time/update": 1.0 + epoch / 10, **metrics}
    return line


def _samples(folder: Path, epoch: int, prompts: Sequence[str], label: str, frames: int) -> None:
    """Pictures whose colour tells epoch, prompt and frame."""
    folder.mkdir(parents=True)
    width, height = (48, 32) if frames > 1 else (32, 32)
    lines = []
    for number, prompt in enumerate(prompts):
        strip = Image.new("RGB", (width * frames, height))
        for frame in range(frames):
            strip.paste(colour(epoch, number, frame), (frame * width, 0, (frame + 1) * width, height))
        strip.save(folder / f"{number:04d}.png")
        scores = {label: 0.5 + (epoch - 3) * (number + 1) / 50, "dark": None}
        line = {"file": f"{number:04d}.png", "prompt": prompt, "slot": number, "replica": 0, "scores": scores}
        lines.append(json.dumps(line))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")


def colour(epoch: int, number: int, frame: int) -> tuple[int, int, int]:
    """What `lay_run` paints a frame with."""
    return (20 * epoch + 10, 60 * number + 30, 12 * frame + 20)
