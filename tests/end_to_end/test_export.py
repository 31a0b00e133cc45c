"""What is exported does in diffusers, called as its users do, what was trained here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from families import FAMILIES, Family
from flowfactory import checkpoint, forms
from flowfactory.archive import Origin
from flowfactory.checkpoint import Progress
from flowfactory.cli import main
from flowfactory.data import load_rows
from flowfactory.export import Exported, export
from flowfactory.kohya import to_kohya
from flowfactory.pipeline import PipelineAdapter
from flowfactory.plan import make_plan
from flowfactory.problems import RunError
from flowfactory.registry import Registry
from flowfactory.spec import Spec
from flowfactory.structure import load_spec
from flowfactory.types import Row
from flowfactory.ui import Ui
from flowfactory.weights import Weights
from oracle import Run
from oracle import run as run_plainly
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

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

    def export(self, form: str = "lora", **options: Any) -> Exported:
        return export(self.folder, self.registry, Ui(quiet=True), form, **options)

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """A run of a family, as if it had been trained: random LoRA that matters, or weights that moved."""

    def make(name: str, tuning: str = LORA, precision: str = "fp32", targets: str = "", ema: float = 0.9) -> Trained:
        family, folder = FAMILIES[name], tmp_path_factory.mktemp("run")
        torch.manual_seed(0)
        family.make().save_pretrained(folder / "model")
        row = {"prompt": "a cat", "negative_prompt": "blurry"} | ({"image": "picture.png"} if family.image else {})
        (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
        Image.new("RGB", (64, 64), "teal").save(folder / "picture.png")
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
        make_plan(spec, registry).write(folder)
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
        checkpoint.save(folder / "checkpoints", Progress(3, 3), weights, optimizer, Origin("", 1, {}))
        if ema:
            weights.restore("current", weights.tensors("ema"))
        return Trained(folder, family, spec, registry, adapter)

    return make


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan", "wan-2.2"])
def test_lora_does_in_diffusers_what_it_did_in_memory(
    name: str, trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained(name)
    exported = made.export()
    assert exported.difference <= 1e-5
    reference = made.by_diffusers(exported, monkeypatch)
    assert made.furthest_from(reference) <= 1e-5
    with safe_open(exported.folder / "pytorch_lora_weights.safetensors", "pt") as file:
        assert '"transformer.lora_alpha": 6.0' in file.metadata()["lora_adapter_metadata"]
    without = made.by_diffusers(attrs.evolve(exported, folder=plain_card(made, exported)), monkeypatch)
    assert made.furthest_from(without) > 1e-3


def plain_card(made: Trained, exported: Exported) -> Path:
    """A card that loads the base model only: the export must matter."""
    card = re.sub(r"pipe.load_lora_weights.*\n", "", (exported.folder / "README.md").read_text())
    (made.folder / "README.md").write_text(card)
    return made.folder


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"sd3", "flux", "qwen-image", "wan", "wan-2.2"}))
def test_lora_of_every_family_is_read_back(name: str, trained: Callable[..., Trained]) -> None:
    assert trained(name).export().difference <= 1e-5


DOUBLE = 'targets = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v", "ff.net.2", "attn.to_add_out"]'


@pytest.mark.parametrize(("name", "targets"), [("qwen-image", ""), ("wan-2.2", ""), ("flux", DOUBLE)])
def test_kohyas_layout_is_read_by_diffusers(
    name: str, targets: str, trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained(name, targets=targets)
    exported = made.export("kohya")
    keys = load_file(exported.folder / "pytorch_lora_weights.safetensors").keys()
    assert all(re.fullmatch(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)", key) for key in keys)
    assert made.furthest_from(made.by_diffusers(exported, monkeypatch)) <= 1e-5


def test_fluxs_single_blocks_in_kohyas_layout_at_their_real_size() -> None:
    """Diffusers knows them at that size only."""

    class FluxTransformer2DModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.Module()
            block.attn, block.proj_mlp = nn.Module(), nn.Linear(3072, 12288, device="meta")
            for name in ("to_q", "to_k", "to_v"):
                setattr(block.attn, name, nn.Linear(3072, 3072, device="meta"))
            self.single_transformer_blocks = nn.ModuleList([block])

    state = {}
    for module, width in {"attn.to_q": 3072, "attn.to_v": 3072, "proj_mlp": 12288}.items():
        state[f"single_transformer_blocks.0.{module}.lora_A.weight"] = torch.randn(2, 3072)
        state[f"single_transformer_blocks.0.{module}.lora_B.weight"] = torch.randn(width, 2)
    read = FluxPipeline.lora_state_dict(to_kohya(FluxTransformer2DModel(), state, alpha=6.0))
    assert not read.pop("transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight").any()
    assert len(read) == len(state) + 1
    for key in state:
        if key.endswith("lora_A.weight"):
            ours = state[key.replace("lora_A", "lora_B")] @ state[key] * 6.0 / 2
            theirs = read[f"transformer.{key.replace('lora_A', 'lora_B')}"] @ read[f"transformer.{key}"]
            torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize(("name", "tuning"), [("sd3", LORA), ("wan-2.2", LORA), ("sd3", FULL), ("flux", FULL)])
def test_whole_pipelines_do_in_diffusers_what_was_trained(
    name: str, tuning: str, trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained(name, tuning)
    exported = made.export("merged")
    assert exported.difference == 0
    assert exported.rounding <= 1e-5
    reference = made.by_diffusers(exported, monkeypatch)
    assert made.furthest_from(reference) <= 1e-5


@pytest.mark.parametrize("name", ["sd3", "wan"])
@pytest.mark.parametrize(("form", "tuning"), [("lora", LORA), ("merged", LORA), ("merged", FULL)])
def test_low_precision(name: str, form: str, tuning: str, trained: Callable[..., Trained]) -> None:
    """Parts of Wan stay in float32."""
    exported = trained(name, tuning, precision="bf16").export(form)
    assert exported.difference <= 1e-5
    assert (exported.rounding > 0) is (tuning == LORA)
    assert "dtype=torch.bfloat16" in (exported.folder / "README.md").read_text()


def test_the_card_says_what_it_is_and_how_it_was_made(trained: Callable[..., Trained]) -> None:
    made = trained("sd3")
    (made.folder / "before-after.png").write_bytes(b"picture")
    exported = made.export()
    card = (exported.folder / "README.md").read_text()
    for line in (
        "library_name: diffusers",
        "# small",
        "These are the weights `ema` after epoch 3.",
        "| reward/jpeg-compressibility | -2.5000 (1) | -1.5000 (3) |",
        "![before and after](before-after.png)",
        'name = "grpo"',
    ):
        assert line in card, line
    assert (exported.folder / "before-after.png").read_bytes() == b"picture"


def test_the_set_and_the_epoch_can_be_chosen(trained: Callable[..., Trained]) -> None:
    made = trained("sd3")
    chosen = [made.export(weights=name, epoch=3, folder=made.folder / name) for name in ("current", "ema")]
    a, b = (load_file(e.folder / "pytorch_lora_weights.safetensors") for e in chosen)
    assert all(not torch.equal(a[key], b[key]) for key in a)


def test_what_cannot_be_exported_is_refused_in_words(trained: Callable[..., Trained]) -> None:
    made = trained("sd3", ema=0)
    with pytest.raises(RunError, match="has no checkpoint epoch-0002; there is epoch-0003"):
        made.export(epoch=2)
    with pytest.raises(RunError, match="has no weights 'ema'; there are current"):
        made.export(weights="ema")
    with pytest.raises(RunError, match="there is no kohya layout for SD3Transformer2DModel; there is for Flux"):
        made.export("kohya")


def test_an_export_that_went_wrong_is_no_good(trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained("sd3")
    true_config = forms.lora_config
    monkeypatch.setattr(forms, "lora_config", lambda lora, targets: true_config(attrs.evolve(lora, alpha=1.0), targets))
    with pytest.raises(RunError, match=r"is no good: read back, its velocities are .* off the largest"):
        made.export()
    assert not (made.folder / "export/lora/README.md").exists()


def test_the_command(run: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = run("a", "-full", "lora.rank=4")
    capsys.readouterr()
    assert main(["export", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'export/lora'}\n"
    assert "before-after.png" in (folder / "export/lora/README.md").read_text()
    assert (
        main(["export", str(folder), "--form", "merged", "--weights", "current", "--to", str(tmp_path), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path)
    assert told["difference"] == 0
    assert main(["export", str(folder), "--epoch", "7"]) == 1
    assert "has no checkpoint epoch-0007" in capsys.readouterr().err
    assert main(["export", str(tmp_path)]) == 2
