"""What lies on the disk is looked at before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flowfactory.contracts.specs import AdapterSpec
from flowfactory.discovery.registry import Registry
from flowfactory.errors import Problem, SpecError
from flowfactory.plan import disk, geometry
from flowfactory.plan.checkpoint import Part
from flowfactory.spec.structure import load_spec
from specs import TOY, edited, lay

LAYERS = ("blocks.0.attn.to_q", "blocks.0.attn.to_k", "blocks.0.ff.net.0.proj")


def weights(*layers: str) -> bytes:
    header = {f"{layer}.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} for layer in layers}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


def checkpoint(folder: Path, networks: Mapping[str, tuple[str, ...]], pipeline: str = "SomePipeline") -> Path:
    """A folder that looks like a pipeline to those who read headers."""
    for name, layers in {**networks, "vae": ("conv",)}.items():
        (folder / name).mkdir(parents=True)
        config: Any = {"block_out_channels": [4, 4, 4]} if name == "vae" else {"patch_size": 2}
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "model.safetensors").write_bytes(weights(*layers))
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": pipeline} | {part: ["diffusers", "Model"] for part in (*networks, "vae")})
    )
    return folder


def found(folder: Path, *edits: tuple[str, str], sets: tuple[str, ...] = ()) -> list[Problem]:
    """Problems, or else notes."""
    notes: list[Problem] = []
    try:
        load_spec(lay(folder, edited(*edits)), Registry(), sets, (), disk.RULES, notes.append)
    except SpecError as error:
        return list(error.problems)
    return [note for note in notes if note.kind not in ("few-prompts", "distilled")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "m", {"transformer": LAYERS})


HERE = ("some-org/some-model", "./m")


def test_a_device_that_is_not_here_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    monkeypatch.setattr(disk, "GPUS", tmp_path / "gpus")
    for device, noted in (("cuda", False), ("cuda:1", False), ("cuda:2", True), ("cpu", False), ("xpu:9", False)):
        kinds = [problem.kind for problem in found(tmp_path, sets=(f"reward[0].device={device}",))]
        assert ("device" in kinds) == noted
    monkeypatch.setattr(disk, "GPUS", tmp_path / "absent")
    monkeypatch.setattr(disk, "OTHERS", ())
    assert disk.gpus() == 0
    monkeypatch.setattr(disk, "OTHERS", (str(tmp_path),))
    assert disk.gpus() == float("inf")


def test_fewer_bits_need_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    for change, who in (("optimizer.bits=8", "[optimizer] bits = 8"), ("model.quantize=nf4", "the model")):
        (problem,) = found(tmp_path, sets=(change,))
        assert problem.what == f"{who} needs the package `bitsandbytes`, which is not installed"
        assert problem.hint == 'pip install "flowfactory[bitsandbytes]"'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vae/model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("transformer/model.safetensors", b"", "is empty"),
        ("transformer/model.safetensors", b"abc", "is cut short"),
        ("transformer/model.safetensors", weights(*LAYERS)[:40], "is cut short"),
        ("transformer/model.safetensors", b"\xff" * 100, "is cut short"),
        ("text_encoder/pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("tokenizer/vocab.json", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("tokenizer/spiece.model", b"", "is empty"),
        (
            "transformer/model.safetensors.index.json",
            b'{"weight_map": {"a": "model-1-of-2.safetensors"}}',
            "lacks model-1-of-2.safetensors",
        ),
        ("transformer/model.safetensors.index.json", b"[]", "is no index"),
        ("transformer/model.safetensors.index.json", b"{", "is no index"),
    ],
)
def test_a_file_at_fault_is_named(tmp_path: Path, model: Path, name: str, content: bytes, said: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(content)
    (problem,) = found(tmp_path, HERE)
    assert problem.kind == "checkpoint"
    assert name in problem.what
    assert said in f"{problem.what} {problem.hint}"


def test_a_sound_checkpoint_is_accepted_and_so_are_links(tmp_path: Path, model: Path) -> None:
    stored = tmp_path / "blob"
    (model / "vae" / "model.safetensors").rename(stored)
    (model / "vae" / "model.safetensors").symlink_to(stored)
    assert found(tmp_path, HERE, ("rank = 4", 'targets = ["to_q", "attn.to_k", "proj", "blocks.0.attn.to_q"]')) == []


@pytest.mark.parametrize("target", ["to_kk", "attn", "o_q", "blocks", "net.0", "transformer.blocks.0.attn.to_q"])
def test_a_target_that_ends_no_layers_name_is_refused(tmp_path: Path, model: Path, target: str) -> None:
    (problem,) = found(tmp_path, HERE, ("rank = 4", f'targets = ["to_q", "{target}"]'))
    assert (problem.kind, problem.place.column) == ("target", 19)  # type: ignore[union-attr]
    assert f"`{target}`" in problem.what


def test_a_target_in_one_of_two_networks_is_worth_a_note(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", {"transformer": LAYERS, "transformer_2": LAYERS[:1]})
    (note,) = found(tmp_path, HERE, ("rank = 4", 'targets = ["to_q", "to_k"]'))
    assert note.code == 0
    assert "`to_k` is in transformer only" in note.what


@pytest.mark.parametrize(
    ("size", "near"),
    [("500", "496x496 or 504x504"), ("[32, 31]", "32x24 or 32x32"), ("[7, 32, 5]", "8x32"), ("1", "8x8")],
)
@pytest.mark.parametrize("table", ["sampling", "eval"])
def test_a_size_that_cannot_be_made_is_refused(tmp_path: Path, model: Path, size: str, near: str, table: str) -> None:
    (problem,) = found(tmp_path, HERE, sets=(f"{table}.size={size}",))
    assert (problem.kind, problem.hint) == ("size", f"the nearest are {near}")


WAN = {"num_attention_heads": 8, "attention_head_dim": 4, "patch_size": [1, 2, 2], "text_dim": 9, "num_layers": 1}
FLUX = {"num_attention_heads": 8, "attention_head_dim": 4, "in_channels": 64, "joint_attention_dim": 9, "patch_size": 1}


QWEN = {**FLUX, "patch_size": 2, "in_channels": 64}
KINDS = ((WAN, "WanTransformer3DModel"), (FLUX, "FluxTransformer2DModel"), (QWEN, "QwenImageTransformer2DModel"))


@pytest.mark.parametrize(
    ("config", "sets", "said"),
    [
        (WAN, ("sampling.size=[64, 80, 1]",), ""),  # of a VAE that halves twice, and patches of two: 8 x 10
        (WAN, ("sampling.size=[24, 24, 1]",), "ulysses = 4 does not divide the 9 tokens of a sample"),
        (WAN, ("eval.size=[24, 24, 1]", "sampling.size=[64, 80, 1]"), "does not divide the 9 tokens of a sample"),
        (FLUX, ("sampling.size=[64, 80, 1]",), ""),
        (FLUX, ("sampling.size=[64, 80, 1]", "model.max_sequence_length=18"), "the 18 tokens of a prompt"),
        (QWEN, ("sampling.size=[64, 80, 1]", "model.max_sequence_length=18"), ""),  # padded
    ],
)
def test_tokens_that_a_team_cannot_divide_are_counted(
    tmp_path: Path, config: dict[str, Any], sets: tuple[str, ...], said: str
) -> None:
    folder = checkpoint(tmp_path / "m", {"transformer": LAYERS})
    kind = next(name for own, name in KINDS if own is config)
    (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": kind, **config}))
    vae = {"block_out_channels": [4, 4, 4], "latent_channels": 16}
    (folder / "vae" / "config.json").write_text(json.dumps(vae))
    problems = found(tmp_path, HERE, sets=("memory.ulysses=4", *sets))
    assert [p.kind for p in problems] == (["teams"] if said else [])
    assert all(said in p.what for p in problems)


@pytest.mark.parametrize(
    ("kind", "heads", "said"),
    [
        ("WanTransformer3DModel", 6, "ulysses = 4 does not divide the 6 attention heads of transformer"),
        ("LTXVideoTransformer3DModel", 8, "tokens of transformer, a LTXVideoTransformer3DModel, cannot be divided"),
        ("FluxTransformer2DModel", 8, ""),
        ("QwenImageTransformer2DModel", 8, ""),
    ],
)
def test_a_network_that_a_team_cannot_compute_is_refused(tmp_path: Path, kind: str, heads: int, said: str) -> None:
    own = checkpoint(tmp_path / "m", {"transformer": LAYERS}) / "transformer" / "config.json"
    own.write_text(json.dumps({"_class_name": kind, "num_attention_heads": heads}))
    assert not found(tmp_path, HERE)
    problems = found(tmp_path, HERE, sets=("memory.ulysses=4",))
    assert [p.kind for p in problems] == (["teams"] if said else [])
    assert all(said in p.what for p in problems)


@pytest.mark.parametrize("how", [("memory.ring=2", "memory.attention=_native_flash"), ("memory.attention=flash",)])
def test_masked_prompts_are_divided_in_one_way_only(tmp_path: Path, how: tuple[str, ...]) -> None:
    own = checkpoint(tmp_path / "m", {"transformer": LAYERS}) / "transformer" / "config.json"
    for kind, count in (("FluxTransformer2DModel", 0), ("QwenImageTransformer2DModel", 1)):
        own.write_text(json.dumps({"_class_name": kind, "num_attention_heads": 8}))
        problems = found(tmp_path, HERE, sets=("memory.ulysses=2", *how))
        assert ["masks its prompts" in p.what for p in problems] == [True] * count


@pytest.mark.parametrize(("wrong", "other"), [("sampling", "eval"), ("eval", "sampling")])
def test_a_size_that_is_unsound_in_itself_hides_no_other(tmp_path: Path, model: Path, wrong: str, other: str) -> None:
    problems = found(tmp_path, HERE, sets=(f"{wrong}.size=-1", f"{other}.size=500"))
    assert sorted(problem.place.text for problem in problems if problem.place) == sorted(
        [f"--set {wrong}.size=-1", f"--set {other}.size=500"]
    )


def test_what_sizes_are_multiples_of() -> None:
    def of(vae: Any, network: Any, own: type[AdapterSpec] = AdapterSpec) -> tuple[int, int]:
        return geometry.multiples(own(path="x"), {"vae": Part({}, vae), "transformer": Part({}, network)})  # type: ignore[arg-type]

    class Packing(AdapterSpec):
        patch = 2

    eight = {"block_out_channels": [1, 2, 3, 4]}
    wan = {"temperal_downsample": [False, True, True]}
    assert of(eight, {"patch_size": 2}) == (16, 1)  # Stable Diffusion 3
    assert of(eight, {"patch_size": 1}, Packing) == (16, 1)  # FLUX
    assert of(wan, {"patch_size": [1, 2, 2]}) == (16, 4)  # Wan 2.1
    assert of(wan | {"scale_factor_spatial": 16}, {"patch_size": [1, 2, 2]}) == (32, 4)  # Wan 2.2, 5B
    assert of({}, {}) == (1, 1)
    assert geometry.multiples(AdapterSpec(path="x"), {}) == (1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("frames", "near"), [(4, "1 and 5"), (2, "1 and 5"), (80, "77 and 81")])
def test_frames_that_cannot_be_made_are_refused(tmp_path: Path, frames: int, near: str) -> None:
    model = checkpoint(tmp_path / "m", {"transformer": LAYERS}, "WanPipeline")
    (model / "vae" / "config.json").write_text('{"temperal_downsample": [false, true, true]}')
    wan = ('name = "diffusers"\npath = "some-org/some-model"', 'name = "wan"\npath = "./m"')
    (problem,) = found(tmp_path, wan, sets=(f"sampling.size=[32, 32, {frames}]",))
    assert problem.hint == f"the nearest are {near}"
    assert found(tmp_path, wan, sets=("sampling.size=[32, 32, 81]",)) == []


@pytest.mark.parametrize(
    ("name", "pipeline", "sound"),
    [
        ("wan", "FluxPipeline", False),
        ("wan", "WanPipeline", True),
        ("flux", "FluxKontextPipeline", False),
        ("flux", "FluxPipeline", True),
        ("diffusers", "AnyPipeline", True),
    ],
)
def test_an_adapter_refuses_other_pipelines(tmp_path: Path, name: str, pipeline: str, sound: bool) -> None:
    checkpoint(tmp_path / "m", {"transformer": LAYERS}, pipeline)
    problems = found(tmp_path, ('name = "diffusers"\npath = "some-org/some-model"', f'name = "{name}"\npath = "./m"'))
    assert ([] if sound else ["pipeline"]) == [problem.kind for problem in problems]


@pytest.mark.parametrize("kind", ["folder", "pipe", "empty", "latin", "ending"])
@pytest.mark.parametrize("key", ["prompts", "eval_prompts"])
def test_data_that_cannot_be_read_is_refused(tmp_path: Path, kind: str, key: str) -> None:
    file = tmp_path / ("p.yaml" if kind == "ending" else "p.txt")
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(b"" if kind == "empty" else b"caf\xe9")
    (problem,) = found(tmp_path, sets=(f"data.{key}={file}",))
    assert problem.kind == "data"
    assert str(file) in problem.what


def test_a_damaged_checkpoint_hides_no_other_mistake(tmp_path: Path, model: Path) -> None:
    (model / "vae" / "model.safetensors").write_bytes(b"")
    edits = (HERE, ("updates = 2", "updates = 3"), ("lr = 1e-4", "lr = '1'"))
    kinds = {problem.kind for problem in found(tmp_path, *edits, sets=("data.prompts=eval.csv",))}
    assert kinds == {"checkpoint", "updates", "wrong-type", "no-such-location"}


def test_a_hub_checkpoint_that_is_not_here_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(disk, "on_disk", lambda *_: pytest.fail("the hub's library was asked"))
    assert found(tmp_path) == []


@pytest.mark.parametrize("name", ["a--b/c", "x..y/z", "a/b.git", "-x/y", "a" * 97, "a/b-", ".x/y"])
def test_a_name_the_hub_could_not_have_is_refused(tmp_path: Path, name: str) -> None:
    (problem,) = found(tmp_path, ("some-org/some-model", name))
    assert problem.kind in ("checkpoint", "no-such-location")


@pytest.mark.parametrize(
    "name", ["a/b", "gpt2", "stabilityai/stable-diffusion-3.5-medium", "black-forest-labs/FLUX.1-dev", "_a/b_c"]
)
def test_other_names_are_taken(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, ("some-org/some-model", name)) == []


@pytest.mark.parametrize("path", ["/", "..", "/etc"])
def test_a_folder_that_is_no_pipeline_is_refused_without_looking_through_it(tmp_path: Path, path: str) -> None:
    (problem,) = found(tmp_path, ("some-org/some-model", path))
    assert "is no diffusers pipeline: it has no model_index.json" in problem.what


@pytest.mark.parametrize(
    ("source", "row", "sound"),
    [
        ("media", '"media": "a.png"', True),
        ("media", '"chosen": "a.png", "rejected": "a.png"', False),
        ("media", '"image": "a.png"', False),
        ("pairs", '"chosen": "a.png", "rejected": "a.png"', True),
        ("pairs", '"media": "a.png"', False),
        ("rollouts", '"image": "a.png"', True),
        ("rollouts", '"media": "a.png"', True),
    ],
)
def test_every_row_shows_what_its_trainer_learns_from(tmp_path: Path, source: str, row: str, sound: bool) -> None:
    """Rows of `eval_prompts` show nothing."""
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a", {row}}}\n' * 3)
    toy = TOY.replace("Needs(", f'Needs(source="{source}", scores={source == "rollouts"}, ')
    gone = () if source == "rollouts" else ("sampling.group", "reward")
    path = lay(tmp_path, edited(("train.txt", "a.jsonl")), toy)
    try:
        load_spec(path, Registry(), (), gone, disk.RULES, lambda note: None)
        problems: list[Problem] = []
    except SpecError as error:
        problems = list(error.problems)
    assert [problem.kind for problem in problems] == ([] if sound else ["media"])
