"""8-bit moments and a quantized base, computed by bitsandbytes itself."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from flowfactory.models.quantized import quantize
from safetensors.torch import load_file, save_file

CHECKPOINTS = "checkpoints"

Runner = Callable[..., Path]

BITS = "optimizer.bits=8"
LORA = ("-full", "lora.rank=8")


def moments(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((folder / CHECKPOINTS).iterdir())[-1] / "optimizer.safetensors")


def test_moments_have_8_bits_and_training_is_near_what_32_make_of_it(run: Runner) -> None:
    few, many = run("few", BITS), run("many")
    small, large = moments(few), moments(many)
    shrunk = [name for name, t in large.items() if name.endswith(("/exp_avg", "/exp_avg_sq")) and t.numel() >= 4096]
    assert len(shrunk) > 10
    for name in shrunk:
        moment = small[name.replace("exp_avg_sq", "state2").replace("exp_avg", "state1")]
        assert (moment.dtype, moment.nbytes) == (torch.uint8, large[name].nbytes // 4)
    for left, right in zip(metrics(few), metrics(many), strict=True):
        assert left["eval/redness/mean"] == pytest.approx(right["eval/redness/mean"], abs=1e-3)
    assert metrics(few) != metrics(many)


def test_8_bit_moments_are_resumed_to_the_bit(run: Runner, spec: Path) -> None:
    whole = run("whole", BITS, "run.epochs=3", "checkpoint.every=1", "checkpoint.keep=9")
    half = run("half", BITS, "run.epochs=3", "checkpoint.every=1", "checkpoint.keep=9")
    for epoch in (2, 3):
        shutil.rmtree(half / CHECKPOINTS / f"epoch-{epoch:04d}")
    assert main(["resume", str(half)]) == 0
    assert metrics(half) == metrics(whole)
    for name in ("current", "ema", "optimizer"):
        file = f"{CHECKPOINTS}/epoch-0003/{name}.safetensors"
        assert (half / file).read_bytes() == (whole / file).read_bytes(), name


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_learns_on_a_quantized_base(
    run: Runner, monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    import bitsandbytes
    from flowfactory.training import loop

    networks: list[Any] = []
    optimising = loop.optimise

    def optimise(learner: Any, *others: Any) -> Any:
        networks.extend(learner.weights.networks.values())
        return optimising(learner, *others)

    monkeypatch.setattr(loop, "optimise", optimise)
    lines = metrics(run(kind, *LORA, f"model.quantize={kind}", f"run.precision={precision}", "run.epochs=4"))
    layer = {"int8": bitsandbytes.nn.Linear8bitLt, "nf4": bitsandbytes.nn.Linear4bit}[kind]
    stored = {"int8": torch.int8, "nf4": torch.uint8}[kind]
    frozen = [m for m in networks[0].modules() if isinstance(m, layer)]
    assert {m.weight.dtype for m in frozen} == {stored}
    inside = [
        p for blocks in networks[0].children() for p in blocks.parameters() if isinstance(blocks, torch.nn.ModuleList)
    ]
    assert {p.dtype for p in inside if p.ndim == 2 and not p.requires_grad} == {stored}
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines[-1]["eval/drift"] > 0
    assert lines[1]["train/ratio"] == pytest.approx(1, abs=1e-3)
    assert lines[-1]["train/gradient_norm"] > 0


def test_lora_of_a_quantized_base_is_exported_for_the_whole_one(run: Runner) -> None:
    folder = run("a", *LORA, "model.quantize=nf4")
    for form in ("lora", "merged"):
        assert main(["export", str(folder), "--form", form]) == 0


@pytest.mark.parametrize("changes", [[BITS], ["model.quantize=nf4", "lora.rank=4"]])
def test_without_the_library_it_is_refused_in_words(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    options = [f"--set={c}" for c in changes] + (["--unset=full"] if "lora.rank=4" in changes else [])
    assert main(["run", str(spec), "--folder", str(spec.parent / "run"), *options]) == 2
    assert 'pip install "flowfactory[bitsandbytes]"' in capsys.readouterr().err


def test_every_weight_cannot_be_trained_on_a_quantized_base(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(spec), "--set=model.quantize=int8"]) == 2
    assert "weights in int8 cannot be trained" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is read")
def test_a_checkpoint_in_bitsandbytes_layout_is_counted_and_told_to_need_a_gpu(
    checkpoint: Path, run: Runner, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As counted where the base is quantized here; diffusers itself reads such weights on a GPU only."""
    path = shutil.copytree(checkpoint, tmp_path / "stored")
    network: Any = FluxTransformer2DModel.from_pretrained(path / "transformer")
    quantize(network, "nf4", torch.float32)
    stored = {name: value.contiguous() for name, value in network.to("cpu").state_dict().items()}
    save_file(stored, path / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    config = json.loads((path / "transformer" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (path / "transformer" / "config.json").write_text(json.dumps(config))
    layers, frozen = [], []
    for change in ("model.quantize=nf4", f"model.path={path}"):
        assert main(["plan", str(spec), "--json", "--unset=full", "--set=lora.rank=8", f"--set={change}"]) == 0
        parts = {part["name"]: part for part in json.loads(capsys.readouterr().out)["memory"]["parts"]}
        layers.append(parts["trained"]["bytes"])
        frozen.append(parts["frozen"]["bytes"])
    assert layers[0] == layers[1]
    assert frozen[1] == pytest.approx(frozen[0], rel=0.2)
    with pytest.raises(AssertionError, match="assert 1 == 0"):
        run("stored", *LORA, f"model.path={path}")
    said = capsys.readouterr().err
    assert f"{path} cannot be read as a diffusers pipeline: No GPU found" in " ".join(said.split())
