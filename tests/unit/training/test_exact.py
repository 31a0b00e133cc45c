"""What `plan --exact` measures, against what autograd keeps of the same networks with weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import diffusers
import pytest
import torch
from families import FAMILIES, Family
from flowfactory.cli.main import main
from flowfactory.contracts.key import Size
from flowfactory.data.rows import load_rows
from flowfactory.discovery.registry import Registry
from flowfactory.errors import RunError
from flowfactory.plan.geometry import decoded
from flowfactory.policy.weights import Weights
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Full, Spec
from flowfactory.training.exact import measure, model
from flowfactory.training.hollow import Peak
from more_families import EVERY, small_sizes
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

LORA, FULL = (), ("full={}",)
MEASURED = [("flux", LORA), ("flux", FULL), ("wan-2.2", LORA), ("ltx", LORA), ("hunyuan-video", FULL)]


def spec_of(spec: Path, family: Family, folder: Path, *sets: str) -> Spec:
    family.make().save_pretrained(folder)
    size = [family.size.height, family.size.width, *([family.size.frames] if family.size.frames > 1 else [])]
    changes = (f"model.path={folder}", "model.name=diffusers", "trainer.name=grpo", f"sampling.size={size}")
    if family.max_sequence_length is not None:
        changes += (f"model.max_sequence_length={family.max_sequence_length}",)
    unset = ("lora",) if "full={}" in sets else ()
    return load_spec(
        spec, Registry(), (*changes, f"sampling.guidance={family.guidance}", *sets), (*unset, "trainer.beta")
    )


def target(spec: Spec) -> Any:
    return Registry().target("adapters", spec.model.name)


def really_kept(spec: Spec) -> tuple[int, int]:
    """Bytes that autograd keeps of one velocity, and those of the longest prompt's conditions."""
    adapter = target(spec)(spec.model.spec)
    adapter.load(torch.device("cpu"), torch.float32)
    conditions = adapter.encode([max(load_rows(Path(spec.data.prompts)), key=lambda row: len(row.prompt))])
    x = torch.randn(1, *adapter.latent_shape(spec.sampling.size))
    targets = [] if isinstance(spec.tuning, Full) else adapter.lora_targets()
    Weights(adapter.networks(), spec.tuning, targets, [], 0)
    weights = {p.untyped_storage().data_ptr() for n in adapter.networks().values() for p in n.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        v = adapter.velocity(x, torch.tensor([0.5]), conditions, spec.sampling.guidance, spec.sampling.size)
    assert v.requires_grad
    return sum(s.nbytes() for s in kept.values()), sum(t.nbytes for t in conditions.values())


@pytest.mark.parametrize(("name", "sets"), MEASURED)
def test_it_is_what_autograd_keeps(name: str, sets: tuple[str, ...], spec: Path, tmp_path: Path) -> None:
    made = spec_of(spec, FAMILIES[name], tmp_path / "model", *sets)
    measured = measure(made, model(made, target(made)))
    kept, conditions = really_kept(made)
    assert (measured.kept, measured.conditions) == (kept, conditions)
    assert 0 < measured.layer < measured.recomputed < measured.kept


@torch.no_grad()
def really_decoded(spec: Spec) -> int:
    """Bytes there are at once beside weights as a latent is decoded by a model with weights."""
    adapter = target(spec)(spec.model.spec)
    adapter.load(torch.device("cpu"), torch.float32)
    peak, vae = Peak(), adapter.pipe.vae
    made = vae.decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        with peak:
            return made(*args, **kwargs)

    vae.decode = decode
    adapter.decode(torch.randn(1, *adapter.latent_shape(spec.sampling.size)), spec.sampling.size)
    return peak.most


@pytest.mark.parametrize("name", ["flux", "wan", "hunyuan-video"])
def test_what_decodes_is_what_a_vae_with_weights_has_at_once(name: str, spec: Path, tmp_path: Path) -> None:
    made = spec_of(spec, FAMILIES[name], tmp_path / "model")
    measured = measure(made, model(made, target(made)))
    assert measured.decoding == really_decoded(made)
    assert measured.encoding


FLUX_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
}


@pytest.mark.parametrize(
    ("name", "config", "latent", "size"),
    [
        ("AutoencoderKL", FLUX_VAE, (16, 32, 48), Size(256, 384)),
        ("AutoencoderKLFlux2", {}, (32, 32, 48), Size(256, 384)),
        ("AutoencoderKLQwenImage", {}, (16, 1, 32, 48), Size(256, 384)),
        ("AutoencoderKLWan", {}, (16, 3, 32, 48), Size(256, 384, 9)),
    ],
)
def test_what_decodes_is_known_from_published_configs(
    name: str, config: dict[str, Any], latent: tuple[int, ...], size: Size
) -> None:
    peak = Peak()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        vae = getattr(diffusers, name)(**config).eval()
        with peak:
            vae.decode(torch.zeros(1, *latent))
    assert decoded({"_class_name": name, **vae.config}, size) * 4 == pytest.approx(peak.most, rel=0.1)


def test_no_weight_is_read(spec: Path, tmp_path: Path) -> None:
    made = spec_of(spec, FAMILIES["sd3"], tmp_path / "model")
    for file in (tmp_path / "model").rglob("*.safetensors"):
        file.unlink()
    assert measure(made, model(made, target(made))).kept > 0


def planned(capsys: pytest.CaptureFixture[str], spec: Path, made: Spec, *options: str) -> dict[str, dict[str, Any]]:
    """Parts of the memory that `plan` says a spec needs, by name."""
    changes = [f"model.path={made.model.spec.path}", "model.name=diffusers", "sampling.size=[32, 48]", *options[1:]]
    assert main(["plan", str(spec), "--json", *options[:1], *(f"--set={change}" for change in changes)]) == 0
    return {part["name"]: part for part in json.loads(capsys.readouterr().out)["memory"]["parts"]}


def test_what_is_measured_takes_the_place_of_the_estimate(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spec_of(spec, FAMILIES["sd3"], tmp_path / "model")
    three = planned(capsys, spec, made, "--exact", "optimizer.micro_batch=3")
    one = planned(capsys, spec, made, "--exact", "optimizer.micro_batch=1", "memory.gradient_checkpointing=true")
    assert three["update_activations"]["reason"].startswith("measured: 3 x ")
    assert three["update_activations"]["bytes"] > 3 * one["update_activations"]["bytes"]
    assert three["trajectories"] == one["trajectories"]
    guessed = planned(capsys, spec, made, "--processes=1")
    assert guessed["trajectories"] == one["trajectories"]
    assert guessed["update_activations"]["reason"].startswith("estimated: ")


@pytest.mark.parametrize("name", ["sd3", "flux", "wan-2.2", "qwen-image", "lumina-2"])
def test_configs_alone_are_planned_as_with_weights(
    name: str, spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spec_of(spec, FAMILIES[name], tmp_path / "model")
    whole = planned(capsys, spec, made, "--exact")
    for file in (tmp_path / "model").rglob("*.safetensors"):
        file.unlink()
    assert main(["plan", str(spec), f"--set=model.path={tmp_path / 'model'}", "--set=model.name=diffusers"]) == 2
    assert "has configs, and no weights of any part" in capsys.readouterr().err
    alone = planned(capsys, spec, made, "--exact")
    assert alone == whole
    assert min(alone[part]["bytes"] for part in ("encoders", "vae", "frozen", "trained")) > 0


def test_a_network_in_one_file_beside_configs_is_planned(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = spec_of(spec, FAMILIES["sd3"], tmp_path / "model")
    whole = planned(capsys, spec, made, "--exact")
    weights = tmp_path / "model/transformer/diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "one.safetensors")
    alone = planned(capsys, spec, made, "--exact", f"model.single_file={tmp_path / 'one.safetensors'}")
    assert alone == whole


def test_what_cannot_be_measured_is_estimated(spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lumina 2 asks how long its prompts are."""
    spec_of(spec, FAMILIES["lumina-2"], tmp_path / "model")
    assert (
        main(["plan", str(spec), "--exact", f"--set=model.path={tmp_path / 'model'}", "--set=model.name=diffusers"])
        == 0
    )
    said = capsys.readouterr()
    assert "cannot be measured" in said.err
    assert "activations are estimated" in said.err


def with_image(spec: Spec, folder: Path) -> Spec:
    """The same, with rows that have an image."""
    Image.new("RGB", (64, 64)).save(folder / "image.png")
    (folder / "train.jsonl").write_text('{"prompt": "a", "image": "image.png"}\n')
    return attrs.evolve(spec, data=attrs.evolve(spec.data, prompts=str(folder / "train.jsonl")))


def test_a_pipeline_that_encodes_an_image_by_itself_is_measured(spec: Path, tmp_path: Path) -> None:
    made = with_image(spec_of(spec, EVERY["wan-2.2-i2v"], tmp_path / "model"), tmp_path)
    measured = measure(made, model(made, target(made)))
    assert (measured.kept, measured.conditions) == really_kept(made)


UNMEASURED = (
    *("hidream", "hunyuan-video-1.5", "joyimage-edit", "joyimage-edit-plus", "lumina-2", "mochi", "nucleus-image"),
    *("qwen-image-2.1", "qwen-image-edit", "qwen-image-edit-plus"),
)
"""And LongCat-Image, which writes a text of its own before that is seen; as docs/performance.md has them."""


@pytest.mark.parametrize("name", UNMEASURED)
def test_families_that_cannot_be_measured(
    name: str, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sizes(monkeypatch)
    family = EVERY[name]
    made = spec_of(spec, family, tmp_path / "model")
    made = with_image(made, tmp_path) if family.image else made
    with pytest.raises(RunError, match="cannot be measured: its networks look at values to decide what to compute"):
        measure(made, model(made, target(made)))
