"""What lies where weights are to be read from is told by names and headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flowfactory.spec import holdings
from flowfactory.spec.holdings import fingerprint


def lay(file: Path, *names: str, shape: tuple[int, ...] = (4, 32)) -> Path:
    """A safetensors file as far as its header goes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name in names}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    return file


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.a.to_q.lora_A.weight", "lora"),
        ("transformer.a.to_q.lora_A.default.weight", "lora"),
        ("base_model.model.a.to_q.lora_A.weight", "lora"),
        ("lora_unet_a_to_q.lora_down.weight", "lora"),
        ("transformer.a.to_q.lora.down.weight", "lora"),
        ("unet.a.processor.to_q_lora.down.weight", "lora"),
        ("lora_unet_a.lokr_w1", "lora"),
        ("transformer_blocks.0.attn.to_q.weight", "network"),
        ("explora.weight", "network"),
    ],
)
def test_a_lora_is_told_from_whole_weights(name: str, kind: str, tmp_path: Path) -> None:
    found = holdings.find(str(lay(tmp_path / "x.safetensors", name)))
    assert found is not None
    assert found.kind == kind
    assert found.ranks == (frozenset({4}) if "own" in name or "lora_A" in name else frozenset())


def test_folders_are_told_by_their_files(tmp_path: Path) -> None:
    lora = "a.lora_A.weight"
    lay(tmp_path / "peft/adapter_model.safetensors", lora)
    lay(tmp_path / "kohya/mine.safetensors", lora)
    lay(tmp_path / "two/pytorch_lora_weights.safetensors", lora)
    lay(tmp_path / "two/transformer_2/pytorch_lora_weights.safetensors", lora)
    for folder in ("pipeline/transformer", "network"):
        lay(tmp_path / folder / "diffusion_pytorch_model.safetensors", "a.weight")
        lay(tmp_path / folder / "diffusion_pytorch_model.fp16.safetensors", "a.weight")
        (tmp_path / folder / "config.json").write_text("{}")
    (tmp_path / "pipeline/model_index.json").write_text("{}")
    told = {name: holdings.find(str(tmp_path / name)) for name in ("peft", "kohya", "two", "pipeline", "network")}
    named = {name: {n: [file.name for file in files] for n, files in h.files.items()} for name, h in told.items() if h}
    assert {name: (h.kind, named[name]) for name, h in told.items() if h} == {
        "peft": ("lora", {"": ["adapter_model.safetensors"]}),
        "kohya": ("lora", {"": ["mine.safetensors"]}),
        "two": ("lora", {n: ["pytorch_lora_weights.safetensors"] for n in ("", "transformer_2")}),
        "pipeline": ("pipeline", {"transformer": ["diffusion_pytorch_model.safetensors"]}),
        "network": ("network", {"": ["diffusion_pytorch_model.safetensors"]}),
    }


def lay_run(folder: Path, *epochs: int, sets: tuple[str, ...] = ("current", "ema", "optimizer")) -> Path:
    for epoch in epochs:
        place = folder / f"checkpoints/epoch-{epoch:04d}"
        for name in sets:
            lay(place / f"{name}.safetensors", f"transformer.{name}.lora_A.default.weight")
        (place / "state.json").write_text("{}")
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_text("{}")
    return folder


def test_a_run_is_its_last_checkpoints_averaged_weights(tmp_path: Path) -> None:
    run = lay_run(tmp_path / "run", 2, 10, 9)
    plain = lay_run(tmp_path / "plain", 1, sets=("current", "optimizer"))
    (run / "best").symlink_to("checkpoints/epoch-0009")
    for location, wanted in (
        (run, run / "checkpoints/epoch-0010/ema.safetensors"),
        (run / "checkpoints/epoch-0002", run / "checkpoints/epoch-0002/ema.safetensors"),
        (run / "best", run / "best/ema.safetensors"),
        (plain, plain / "checkpoints/epoch-0001/current.safetensors"),
    ):
        found = holdings.find(str(location))
        assert found is not None
        assert found.files == {"": (wanted,)}


def test_what_a_run_gets_beside_its_weights_does_not_make_it_another(tmp_path: Path) -> None:
    run = lay_run(tmp_path / "run", 1)
    before = fingerprint(str(run))
    (run / "report.html").write_text("a report")
    assert fingerprint(str(run)) == before
    lay_run(run, 2, sets=("ema",))
    lay(run / "checkpoints/epoch-0002/ema.safetensors", "transformer.other.lora_A.default.weight")
    assert fingerprint(str(run)) != before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: (f / "x").mkdir(), "has no LoRA, no pipeline and no network in it"),
        (lambda f: (f / "x").write_text("a"), "is no safetensors file"),
        (lambda f: (f / "x").write_bytes(b"\xff" * 100), "is no safetensors file"),
        (lambda f: (f / "x").write_bytes((3).to_bytes(8, "little") + b"[1]"), "is no safetensors file"),
        (lambda f: lay_run(f / "x"), "has no checkpoint"),
        (
            lambda f: [lay(f / "x" / n, "a.lora_A.weight") for n in ("a.safetensors", "b.safetensors")],
            "has several LoRA: `a.safetensors`, `b.safetensors`; name one of them",
        ),
    ],
)
def test_what_holds_no_weights_is_refused(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=words):
        holdings.find(str(tmp_path / "x"))


def test_of_a_hub_id_that_is_not_here_nothing_is_known() -> None:
    assert holdings.find("nobody/has-this-one") is None
