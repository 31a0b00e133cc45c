"""Checkpoints as people have them: what is wrong with one is said before anything is loaded, with the part named."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flowfactory.cli.main import main
from flowfactory.conditions.identity import fingerprint
from flowfactory.discovery.registry import Registry
from flowfactory.errors import SpecError
from flowfactory.models.tiny import stable_diffusion_3
from flowfactory.plan import checkpoint, disk, faults, headers
from flowfactory.plan.estimate import estimate
from flowfactory.spec.structure import load_spec
from ggufs import gguf_file
from hub import Hub, Trouble
from huggingface_hub import close_session, constants
from safetensors.torch import load_file, save_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    stable_diffusion_3().save_pretrained(folder)
    return folder


@pytest.fixture
def model(published: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(published, tmp_path / "model"))


def what_is_wrong(spec: Path, model: Path, *sets: str) -> str:
    """What is said of a spec; empty if nothing is."""
    try:
        faults.refuse(load_spec(spec, Registry(), (f"model.path={model}", *sets)))
    except SpecError as error:
        return str(error)
    return ""


def cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def as_variant(model: Path, *parts: str) -> None:
    for part in parts:
        for file in (model / part).glob("*.safetensors"):
            file.rename(file.with_suffix(".fp16.safetensors"))


def in_shards(model: Path) -> None:
    shutil.rmtree(model)
    stable_diffusion_3().save_pretrained(model, max_shard_size="60KB")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no text encoder": (lambda m: shutil.rmtree(m / "text_encoder_2"), "lacks its part `text_encoder_2`"),
    "no vae": (lambda m: shutil.rmtree(m / "vae"), "lacks its part `vae`"),
    "no tokenizer": (lambda m: shutil.rmtree(m / "tokenizer_3"), "lacks its part `tokenizer_3`"),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), "has no weights for its part `transformer`"),
    "no config": (lambda m: (m / "vae/config.json").unlink(), "vae/config.json is missing"),
    "config": (lambda m: (m / "vae/config.json").write_text("[1"), "vae/config.json is no JSON"),
    "a list": (lambda m: (m / "vae/config.json").write_text("[1]"), "vae/config.json is not a table of JSON"),
    "a config's pointer": (lambda m: (m / "vae/config.json").write_text(POINTER), "vae/config.json is a pointer of"),
    "no index": (lambda m: (m / "model_index.json").unlink(), "it has no model_index.json"),
    "index": (lambda m: (m / "model_index.json").write_text("{"), "model_index.json is no JSON"),
    "pointer": (lambda m: (m / WEIGHTS).write_text(POINTER), f"{WEIGHTS} is a pointer of git-lfs"),
    "empty": (lambda m: (m / WEIGHTS).write_text(""), f"{WEIGHTS} is empty"),
    "cut in its header": (lambda m: cut(m / WEIGHTS, 0.01), f"{WEIGHTS} is cut short"),
    "cut": (lambda m: cut(m / WEIGHTS, 0.99), f"{WEIGHTS} is cut short: it has "),
    "noise": (lambda m: (m / WEIGHTS).write_bytes(b"\x08" + bytes(7) + b"x" * 99), "its header is not JSON"),
    "no header": (lambda m: (m / WEIGHTS).write_bytes(b"\x07" + bytes(7) + b'{"a":1}'), "its header is not one"),
    "fp16 only": (
        lambda m: as_variant(m, "transformer", "vae", "text_encoder"),
        "has weights of its parts `text_encoder`, `transformer`, `vae` as the variant fp16 only; "
        'set [model] variant = "fp16"',
    ),
    "one in fp16 only": (
        lambda m: as_variant(m, "transformer"),
        'has weights of its part `transformer` as the variant fp16 only; set [model] variant = "fp16"',
    ),
    "a shard": (
        lambda m: [in_shards(m), next((m / "transformer").glob("*-00002-of-*")).unlink()],
        "its part `transformer` lacks diffusion_pytorch_model-00002-of-",
    ),
    "a shard's index": (
        lambda m: [in_shards(m), next((m / "transformer").glob("*.index.json")).write_text("{}")],
        "is no index of shards",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_missing_or_damaged_is_named(name: str, spec: Path, model: Path) -> None:
    damage, expected = DAMAGE[name]
    assert what_is_wrong(spec, model) == ""
    damage(model)
    assert expected in what_is_wrong(spec, model)


def test_check_says_it_and_imports_no_torch(
    spec: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / WEIGHTS).write_text(POINTER)
    monkeypatch.delitem(sys.modules, "torch")
    for verb in ("check", "plan", "run"):
        assert main([verb, str(spec), "--set", f"model.path={model}"]) == 2
        assert f"{WEIGHTS} is a pointer of git-lfs" in capsys.readouterr().err
    assert "torch" not in sys.modules


def test_parts_are_told_from_plain_values_of_a_pipeline(spec: Path, model: Path) -> None:
    """As Krea 2 has lists of layers there; a part that is left out has neither library nor class."""
    index = json.loads((model / "model_index.json").read_text())
    more = {"layers": [1, 2], "sizes": [1, 2, 3], "absent": [None, None], "shift": 3.0}
    (model / "model_index.json").write_text(json.dumps(index | more))
    assert checkpoint.parts_of(index | more) == checkpoint.parts_of(index)
    assert checkpoint.parts_of(index)["transformer"] == "SD3Transformer2DModel"
    assert list(faults.in_files(load_spec(spec, Registry()).model.spec)) == []


def test_variants(spec: Path, model: Path) -> None:
    as_variant(model, "transformer", "vae")
    assert what_is_wrong(spec, model, "model.variant=fp16") == ""
    assert "variant `bf16` is of no part of" in what_is_wrong(spec, model, "model.variant=bf16")
    made = load_spec(spec, Registry(), (f"model.path={model}", "model.variant=fp16", "model.name=diffusers"))
    assert (estimate(made)["frozen"] or 0) > 0


def test_files_of_one_file_checkpoints(spec: Path, model: Path, tmp_path: Path) -> None:
    single = Path(shutil.copy(model / WEIGHTS, tmp_path / "comfy.safetensors"))
    assert "is one file, and a pipeline has several models; set [model] path" in what_is_wrong(spec, single)
    for part in ("transformer", "model_index.json"):
        said = what_is_wrong(spec, model / part)
        assert f"{part} is a part of a pipeline; set [model] path to {model}" in said
    shutil.rmtree(model / "transformer")
    assert "lacks its part `transformer`" in what_is_wrong(spec, model, f"model.single_file={single}")
    (model / "transformer").mkdir()
    (model / "transformer/config.json").write_text("{}")
    assert what_is_wrong(spec, model, f"model.single_file={single}") == ""
    cut(single, 0.5)
    assert "single_file" in (said := what_is_wrong(spec, model, f"model.single_file={single}"))
    assert "is cut short" in said
    for ending, advice in {
        ".ckpt": "weights_only=True",
        ".pt": "save_file",
        ".bin": "may run",
        ".sft": "end in",
    }.items():
        (other := tmp_path / f"comfy{ending}").touch()
        said = what_is_wrong(spec, model, f"model.single_file={other}")
        assert "is neither a .safetensors nor a .gguf file; " in said
        assert advice in said


FOREIGN: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "a LoRA": (
        {"transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 4)},
        "is a LoRA, no network: it has `transformer_blocks.0.attn.to_q.lora_A.weight`; to begin with it, set [lora]",
    ),
    "kohya's": ({"lora_unet_blocks_0_attn_qkv.lora_down.weight": torch.zeros(2, 4)}, "is a LoRA, no network"),
    "scaled": (
        {"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "a.scale_weight": torch.ones(1)},
        "has weights that are to be multiplied by others beside them, as `a.scale_weight`, which diffusers does not",
    ),
    "marked as scaled": (
        {"a.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "scaled_fp8": torch.ones(1)},
        "as `scaled_fp8`, which diffusers does not; use a file of bf16 or .gguf",
    ),
    "packed": (
        {"a.weight": torch.zeros(8, 1, dtype=torch.uint8), "a.weight.absmax": torch.ones(1)},
        "has weights in fewer bits, as `a.weight`, which are read from a pipeline's folder only",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_network_in_one_file_is_named(name: str, spec: Path, model: Path, tmp_path: Path) -> None:
    tensors, words = FOREIGN[name]
    save_file(tensors, tmp_path / "one.safetensors")
    assert words in what_is_wrong(spec, model, f"model.single_file={tmp_path}/one.safetensors")


def test_numbers_of_8_bits_and_whole_models_are_no_fault(spec: Path, model: Path, tmp_path: Path) -> None:
    state = {f"model.diffusion_model.{n}": t.to(torch.float8_e4m3fn) for n, t in load_file(model / WEIGHTS).items()}
    others = {"text_encoders.t5.scale_weight": torch.ones(1), "vae.weight": torch.zeros(8, dtype=torch.uint8)}
    save_file(state | others, tmp_path / "one.safetensors")
    assert what_is_wrong(spec, model, f"model.single_file={tmp_path}/one.safetensors") == ""


def test_a_folder_of_configs_is_refused_as_one(spec: Path, model: Path) -> None:
    for file in model.rglob("*.safetensors"):
        file.unlink()
    said = what_is_wrong(spec, model)
    assert "has configs, and no weights of any part: " in said
    assert "a run needs them; `flowfactory plan --exact` does not" in said
    assert said.count("no weights") == 1


def test_gguf_is_counted(spec: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_file(model / WEIGHTS)
    file = gguf_file(tmp_path / "tiny.gguf", state)
    read = headers.weights(file).tensors
    assert {name: tensor.shape for name, tensor in read.items()} == {n: tuple(t.shape) for n, t in state.items()}
    weight = read["transformer_blocks.0.attn.to_q.weight"]
    assert weight.bytes == np.prod(weight.shape) * 34 // 32
    sets = (f"model.single_file={file}", "model.name=diffusers")
    whole, small = (load_spec(spec, Registry(), (f"model.path={model}", *s)) for s in ((), sets))
    assert estimate(whole)["trained"] == estimate(small)["trained"] != 0
    assert (estimate(small)["frozen"] or 0) < 0.5 * (estimate(whole)["frozen"] or 0)
    said = what_is_wrong(spec, model, *sets, "model.quantize=nf4")
    assert 'stored in fewer bits by gguf, and quantize = "nf4" would round it again; leave that out' in said
    (model / WEIGHTS).unlink()
    assert estimate(small)["trained"] is None
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "flowfactory[gguf]"' in what_is_wrong(spec, model, sets[0])
    cut(file, 0.6)
    with pytest.raises(ValueError, match="cut short"):
        headers.weights(file)


def test_weights_in_fewer_bits_are_counted(tmp_path: Path) -> None:
    """As bitsandbytes stores them: two to a byte, with the shape as JSON beside them."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    name = "blocks.0.attn.to_q.weight"
    facts = torch.tensor(list(json.dumps({"shape": [64, 32]}).encode()), dtype=torch.uint8)
    tensors = {
        name: torch.zeros(1024, 1, dtype=torch.uint8),
        f"{name}.absmax": torch.zeros(32),
        f"{name}.quant_state.bitsandbytes__nf4": facts,
        "blocks.0.attn.to_k.weight": torch.zeros(64, 32, dtype=torch.int8),
        "blocks.0.attn.to_k.SCB": torch.zeros(64),
        "norm.weight": torch.zeros(32, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    part = checkpoint.Folder(tmp_path).read("transformer", None)
    assert part is not None
    assert part.parameters == 2 * 64 * 32 + 32
    assert part.bytes(2) == sum(t.nbytes for t in tensors.values())
    assert part.adapted(()) == [(64, 32)] * 2
    assert part.quantized == "bitsandbytes"


def test_what_does_not_go_together_with_fewer_bits(spec: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model / "transformer/config.json"
    table = {"quantization_config": {"quant_method": "bitsandbytes"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | table))
    assert what_is_wrong(spec, model) == ""
    said = what_is_wrong(spec, model, "model.name=diffusers", "model.quantize=nf4")
    assert 'transformer is stored in fewer bits by bitsandbytes, and quantize = "nf4" would round it again' in said
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "transformer is read by bitsandbytes, which is not installed" in what_is_wrong(spec, model)
    table["quantization_config"]["quant_method"] = "x; rm -r ~"
    config.write_text(json.dumps(json.loads(config.read_text()) | table))
    assert "pip install" not in what_is_wrong(spec, model), "whoever made a checkpoint says nothing about that"


ODD = {
    "model_index.json": ("_class_name", "transformer", "vae"),
    "transformer/config.json": ("patch_size", "num_layers", "attention_head_dim", "quantization_config"),
    "vae/config.json": ("block_out_channels", "latent_channels", "scale_factor_spatial"),
}
"""What of a checkpoint's configs is read before it is loaded."""


@pytest.mark.parametrize("value", [[], "x", -1, {"x": {}}, [None, None]])
def test_values_of_other_shape_are_no_mistake_of_ours(spec: Path, model: Path, value: Any) -> None:
    """A checkpoint can come from anybody; what is odd in it is refused, or left to whoever loads it."""
    for file, names in ODD.items():
        whole = json.loads((model / file).read_text())
        for name in names:
            (model / file).write_text(json.dumps({**whole, name: value}))
            with suppress(SpecError):
                estimate(load_spec(spec, Registry(), [f"model.path={model}"], also=disk.RULES))
        (model / file).write_text(json.dumps(whole))


# --- the hub ---


@pytest.fixture
def hub(online: Hub, published: Path) -> Hub:
    """One that has the model `owner/name`."""
    online.commit_folder(published)
    return online


THERE = ("model.name=diffusers", "model.path=owner/name")


def test_a_model_on_the_hub_is_planned_before_its_weights_are_here(spec: Path, published: Path, hub: Hub) -> None:
    there = estimate(load_spec(spec, Registry(), THERE), fetch=True)
    here = estimate(load_spec(spec, Registry(), ("model.name=diffusers", f"model.path={published}")))
    assert there == here
    assert here["update"] is not None
    configs = {name for name in hub.sent if name.endswith(".json")}
    assert {Path(name).name for name in configs} == {"model_index.json", "config.json"}
    assert all(hub.sent[name] <= MOST for name in hub.sent.keys() - configs)
    assert max(file.stat().st_size for file in published.rglob("*.safetensors")) > MOST


MOST = 100_001
"""Bytes of a file of weights that its header is looked for in."""

REFUSED = {
    "gated": (
        "/resolve/",
        Trouble(403, "GatedRepo"),
        "is gated; accept its terms at {} and log in with `hf auth login`",
    ),
    "absent": ("name", Trouble(404, "RepoNotFound"), "is not at {}, or is private and you are not logged in; correct"),
    "private": ("name", Trouble(401, "RepoNotFound"), "is not at {}, or is private and you are not logged in; correct"),
    "no revision": ("name", Trouble(404, "RevisionNotFound"), "has no revision 'x' at {}; take one that is listed"),
    "no pipeline": ("_index", Trouble(404, "EntryNotFound"), "has no model_index.json at {}; see there what it has"),
    "token": ("name", Trouble(401), "is not given: the hub answers 401 at {}; log in with `hf auth login` again, or"),
    "forbidden": (
        "name",
        Trouble(403),
        "is not given: the hub answers 403 at {}; log in with `hf auth login` again, or",
    ),
}
LOST = {
    "busy": (Trouble(429), "the hub was asked too often (429)"),
    "broken": (Trouble(503), "the hub fails (503)"),
    "portal": (Trouble(page=b"<html>log in</html>"), "what answers at {} is not the hub: it sends a page where"),
    "reset": (Trouble(after=-1), "the connection to the hub at {} failed (RemoteProtocolError: Server disconnected"),
    "cut": (Trouble(after=9), "the connection to the hub at {} failed (RemoteProtocolError: peer closed connection"),
}
WITHIN = {
    "gated": (WEIGHTS, Trouble(403, "GatedRepo"), 2, "owner/name is gated; accept its terms at {}"),
    "no config": ("transformer/config.json", Trouble(404, "EntryNotFound"), 2, "has no transformer/config.json at {}"),
    "cut": (WEIGHTS, Trouble(after=99), 0, "and the connection to the hub at"),
    "broken": (WEIGHTS, Trouble(500), 0, "and the hub fails (500)"),
}


def told(verb: str, spec: Path, capsys: pytest.CaptureFixture[str], *sets: str) -> tuple[int, str]:
    """The exit code of a verb, and all that it has said."""
    code = main([verb, str(spec), *(f"--set={text}" for text in (*THERE, *sets))])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_refuses_is_said_at_plan_and_run(
    name: str, spec: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    part, trouble, words = REFUSED[name]
    hub.troubles = {part: trouble}
    for verb in ("plan", "run", "bench"):
        code, said = told(verb, spec, capsys, "model.revision=x" if "revision" in name else "model.revision=main")
        assert (code, "Traceback" in said) == (2, False)
        assert f"command line: [model] path owner/name {words.format(f'{hub.url}/owner/name')}" in said
    assert not any(Path("runs").glob("*"))


@pytest.mark.parametrize("name", LOST)
def test_without_a_connection_the_rest_is_planned_and_nothing_is_run(
    name: str, spec: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble, words = LOST[name]
    hub.troubles = {"owner/name": trouble}
    code, said = told("plan", spec, capsys)
    assert code == 0
    assert f"owner/name is not on this disk, and {words.format(hub.url)}" in said
    code, said = told("run", spec, capsys)
    assert (code, "Traceback" in said) == (2, False)
    assert f"[model] path owner/name is not on this disk, and {words.format(hub.url)}" in said
    assert "name a folder" in said or "try again later" in said
    assert not any(Path("runs").glob("*"))


@pytest.mark.parametrize("name", WITHIN)
def test_what_is_lost_half_way_is_said_at_plan(
    name: str, spec: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    part, trouble, expected, words = WITHIN[name]
    hub.troubles = {part: trouble}
    code, said = told("plan", spec, capsys)
    assert (code, "Traceback" in said) == (expected, False)
    assert words.format(f"{hub.url}/owner/name") in said


def test_a_hub_that_never_answers_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and nobody reads them
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(ValueError, match="owner/name is not on this disk, and the connection to the hub"):
                fingerprint("owner/name", None, lambda _: True)
            close_session()  # as in a process that was forked


def test_nothing_is_measured_by_configs_that_the_hub_cannot_be_asked_for(
    spec: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.troubles = {"owner/name": Trouble(503)}
    assert main(["plan", "--exact", str(spec), *(f"--set={text}" for text in THERE)]) == 0
    assert "and the hub fails (503); activations are estimated" in capsys.readouterr().err
    assert [path for path in hub.asked if "/resolve/" in path] == []  # where a library asks again and again


def test_a_model_that_is_gone_is_asked_for_once_before_a_run_goes_on(spec: Path, hub: Hub) -> None:
    hub.troubles = {"owner/name": Trouble(503)}
    loaded = load_spec(spec, Registry(), THERE)
    for refuse in (faults.refuse, faults.refuse_absent):
        with pytest.raises(SpecError, match="owner/name is not on this disk, and the hub fails"):
            refuse(loaded)


def test_a_hub_that_may_not_be_asked(
    spec: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert told("check", spec, capsys)[0] == 0
    code, said = told("plan", spec, capsys)
    assert code == 0
    assert "owner/name is not on this disk, and HF_HUB_OFFLINE forbids to ask the hub: unknown until" in said
    code, said = told("run", spec, capsys)
    assert code == 2
    assert "HF_HUB_OFFLINE forbids to ask the hub; unset it, or name a folder" in said
    assert hub.asked == []


def test_lora_to_begin_with_is_asked_for_before_the_model_is_read(
    spec: Path, model: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = (f"model.path={model}", "lora.from=owner/closed")
    assert main(["run", str(spec), *(f"--set={text}" for text in sets), "--unset=lora.rank"]) == 2
    page = f"{hub.url}/owner/closed"
    said = capsys.readouterr().err
    assert f"[lora] from owner/closed is gated; accept its terms at {page} and log in with `hf auth login`" in said
    assert "Traceback" not in said
