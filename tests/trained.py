"""Runs as training leaves them, of any family, and what diffusers makes of their exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES, Family, loud
from flowfactory.cli.ui import Ui
from flowfactory.contracts.key import Precision
from flowfactory.contracts.types import Row
from flowfactory.data.rows import load_rows
from flowfactory.discovery.registry import Registry
from flowfactory.export import choosing
from flowfactory.export.export import Exported, export
from flowfactory.models import tap
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.plan.plan import SPEC_FILE, make_plan
from flowfactory.policy.weights import Weights
from flowfactory.runs import checkpoint
from flowfactory.runs.archive import Origin
from flowfactory.runs.checkpoint import Progress
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec
from more_families import EVERY
from oracle import Run
from oracle import run as run_plainly
from PIL import Image

PROMPT = Row("a cat", "blurry")
STEPS = 4
LORA, FULL = "[lora]\nrank = 2\nalpha = 6.0\n{targets}", "[full]"
SPEC = """
{tuning}

[run]
name = "small"
epochs = 3
precision = "{precision}"

[model]
name = "diffusers"
path = "{path}"
{length}

[data]
prompts = "{folder}/prompts.jsonl"

[sampling]
size = {size}
steps = 4
prompts = 1
group = 2
guidance = {guidance}

[scheduler]
name = "flow-sde"

[trainer]
name = "grpo"

[[reward]]
name = "jpeg-compressibility"

[optimizer]
lr = 1e-3
ema = {ema}
"""


@attrs.frozen(eq=False)
class Trained:
    """A run's folder as training leaves it, and the adapter whose weights are in its last checkpoint."""

    folder: Path
    family: Family
    spec: Spec
    registry: Registry
    adapter: PipelineAdapter[Any]

    def export(
        self,
        form: str = "lora",
        base: str | None = None,
        folder: Path | None = None,
        epoch: int | None = None,
        weights: str | None = None,
        dtype: Precision | None = None,
    ) -> Exported:
        """As the command does it."""
        sets = [f"model.path={base}"] if base else []
        spec = load_spec(self.folder / SPEC_FILE, self.registry, sets, moved=True)
        model = self.registry.find("adapters", spec.model.name)
        target = self.registry.target("adapters", spec.model.name)
        place = choosing.place(self.folder, spec, form, folder)
        saved = choosing.weights(self.folder, spec, epoch, weights)
        return export(self.folder, spec, target, model.source, Ui(quiet=True), form, saved, place, dtype)

    def by_diffusers(self, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Run:
        """Load as the model card says, and sample as a user does."""
        (python,) = re.findall(r"```python\n(.*?)```", (exported.folder / "README.md").read_text(), re.DOTALL)
        monkeypatch.chdir(exported.folder)
        loaded: dict[str, Any] = {}
        exec(python, loaded)
        pipe: DiffusionPipeline = loaded["pipe"]
        pipe.set_progress_bar_config(disable=True)
        size, family = self.family.size, self.family
        arguments: dict[str, Any] = {"height": size.height, "width": size.width, **family.arguments}
        arguments |= {"num_frames": size.frames} if size.frames > 1 else {}
        if family.max_sequence_length is not None:
            arguments["max_sequence_length"] = family.max_sequence_length
        if "true_cfg_scale" in family.arguments or "flux" not in type(pipe).__name__.lower():
            arguments["negative_prompt"] = PROMPT.negative_prompt
        return run_plainly(pipe, prompt=PROMPT.prompt, num_inference_steps=STEPS, **arguments)

    @torch.no_grad()
    def furthest_from(self, reference: Run) -> float:
        """The largest difference between the trained network's velocities and those of a run."""
        conditions = self.adapter.encode([PROMPT])
        ours = [
            self.adapter.velocity(x, sigma[None], conditions, self.family.guidance, self.family.size)
            for x, sigma in zip(reference.latents, reference.sigmas[:-1], strict=False)
        ]
        return max(float((a - b).abs().max()) for a, b in zip(ours, reference.velocities, strict=True))


def train(
    folder: Path, name: str, tuning: str = LORA, precision: str = "fp32", targets: str = "", ema: float = 0.9
) -> Trained:
    """A run of a family in `folder`, as if it had been trained: random LoRA that matters, or weights that moved."""
    family = EVERY[name]
    torch.manual_seed(0)
    made = family.make()
    if name not in FAMILIES:
        for network in tap.networks(made).values():
            loud(network)
    made.save_pretrained(folder / "model")
    row = {"prompt": family.asks("a cat"), "negative_prompt": "blurry"} | (
        {"image": "picture.png"} if family.image else {}
    )
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    Image.new("RGB", family.shapes[0], "teal").save(folder / "picture.png")
    size, length = family.size, family.max_sequence_length
    text = SPEC.format(
        tuning=tuning.format(targets=targets),
        precision=precision,
        path=folder / "model",
        folder=folder,
        size=[size.height, size.width, *([size.frames] if size.frames > 1 else [])],
        guidance=family.guidance,
        length="" if length is None else f"max_sequence_length = {length}",
        ema=ema,
    )
    (folder / "written.toml").write_text(text)
    registry = Registry()
    spec = load_spec(folder / "written.toml", registry)
    make_plan(spec, registry.versions()).write(folder)
    (folder / "metrics.jsonl").write_text(
        '{"epoch": 1, "reward/jpeg-compressibility/mean": -2.5}\n'
        '{"epoch": 3, "reward/jpeg-compressibility/mean": -1.5}\n'
    )
    adapter = PipelineAdapter(spec.model.spec)
    adapter.load(torch.device("cpu"), {"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    adapter.encode(load_rows(folder / "prompts.jsonl"))
    patterns = [] if tuning == FULL else adapter.lora_targets()
    weights = Weights(adapter.networks(), spec.tuning, patterns, ["ema"] if ema else [], 0)
    optimizer = torch.optim.AdamW(weights.parameters.values())
    with torch.no_grad():
        for tensor in weights.tensors("current").values():
            tensor += 0.1 * torch.randn_like(tensor)
    if ema:
        weights.move("ema", 0.5)
    checkpoint.save(folder / "checkpoints", Progress(3, 3), weights, {"current": optimizer}, {}, Origin("", 1, {}))
    if ema:
        weights.restore("current", weights.tensors("ema"))
    return Trained(folder, family, spec, registry, adapter)
