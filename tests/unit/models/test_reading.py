"""Checkpoints as people have them are read to the same network; what is none is refused with its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Location, Size
from flowfactory.contracts.types import Row
from flowfactory.models import reading
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.models.tiny import stable_diffusion_3
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Lora
from flowfactory_plugin_wan.checkpoint import tiny_wan_i2v
from ggufs import gguf_file
from hub import Hub, Trouble
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

FILE = "transformer/diffusion_pytorch_model.safetensors"
SIZE = Size(32, 48)
MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    stable_diffusion_3().save_pretrained(folder)
    return folder


def spec_of(path: Path, variant: str | None = None, single_file: Path | None = None) -> PipelineSpec:
    file = None if single_file is None else Location(str(single_file))
    return PipelineSpec(path=Location(str(path)), variant=variant, single_file=file, max_sequence_length=32)


def same(spec: PipelineSpec, published: Path) -> bool:
    expected, found = load_file(published / FILE), reading.read(spec, torch.float32).transformer.state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_variant(published: Path, tmp_path: Path) -> None:
    stable_diffusion_3().save_pretrained(tmp_path / "model", variant="fp16")
    assert same(spec_of(tmp_path / "model", variant="fp16"), published)
    with pytest.raises(reading.Unreadable, match="model cannot be read as a diffusers pipeline: "):
        reading.read(spec_of(tmp_path / "model"), torch.float32)


def test_a_network_in_one_file(published: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(published / FILE, tmp_path / "comfy.safetensors"))
    model = Path(shutil.copytree(published, tmp_path / "model"))
    (model / FILE).unlink()
    assert same(spec_of(model, single_file=file), published)
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 9)
    with pytest.raises(reading.Unreadable, match=r"noise.safetensors "):
        reading.read(spec_of(model, single_file=tmp_path / "noise.safetensors"), torch.float32)


def test_a_file_that_lacks_weights_is_refused(published: Path, tmp_path: Path) -> None:
    state = load_file(published / FILE)
    name = next(name for name in sorted(state) if name.endswith("attn.to_q.weight"))
    save_file({key: tensor for key, tensor in state.items() if key != name}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=r"one\.safetensors cannot be read as SD3Transformer2DModel: IndexError: "):
        reading.read(spec_of(published, single_file=tmp_path / "one.safetensors"), torch.float32)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_folder_that_lacks_weights_is_refused(part: str, published: Path, tmp_path: Path) -> None:
    """Diffusers would draw them at random."""
    model = Path(shutil.copytree(published, tmp_path / "model"))
    (file,) = (model / part).glob("*.safetensors")
    state = load_file(file)
    name = next(
        name
        for name in sorted(state)
        if name.endswith("norm1.linear.weight" if part == "transformer" else "conv1.bias")
    )
    save_file({key: tensor for key, tensor in state.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(
        ValueError, match=f"{model} .* its part `{part}` lacks 1 of the weights of .*, `{name}` for one"
    ):
        reading.read(spec_of(model), torch.float32)


def test_a_full_memory_is_not_damage() -> None:
    for error in (torch.OutOfMemoryError, MemoryError):
        with pytest.raises(error), reading.reading("somewhere"):
            raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("no such thing"), "somewhere cannot be read as a diffusers pipeline: no such thing"),
        (KeyError("kind"), r"pipeline: KeyError: 'kind' \(models/test_reading.py, line \d+\)"),
        (AssertionError(), "pipeline: AssertionError"),
    ],
)
def test_whatever_a_library_raises_is_told_with_the_checkpoint(error: Exception, words: str) -> None:
    with pytest.raises(ValueError, match=words), reading.reading("somewhere"):
        raise error


@pytest.mark.skipif(not MAPS.exists(), reason="no list of mapped files on this system")
@pytest.mark.parametrize(("dtype", "mapped"), [(torch.float32, True), (torch.bfloat16, False)])
def test_weights_stored_as_they_are_computed_with_are_the_mapped_file(
    published: Path, dtype: torch.dtype, mapped: bool
) -> None:
    """So processes of one machine read it once and hold it once; what has to be cast each has to itself."""
    network = reading.read(spec_of(published), dtype).transformer
    lines = [line.split() for line in MAPS.read_text().splitlines() if line.endswith(FILE)]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    places = [p.data_ptr() for p in network.parameters()]
    inside = [any(start <= place < end for start, end in ranges) for place in places]
    assert inside == [mapped] * len(places)


def test_gguf_is_run_and_its_lora_trained(published: Path, tmp_path: Path) -> None:
    """In 8 bits it is off by half a per cent."""
    file = gguf_file(tmp_path / "tiny.gguf", load_file(published / FILE))
    made = []
    x = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    for single in (None, file):
        adapter = PipelineAdapter(spec_of(published, single_file=single))
        adapter.load(torch.device("cpu"), torch.float32)
        conditions = adapter.encode([Row("a cat", "")])
        weights = Weights(adapter.networks(), Lora(rank=2), adapter.lora_targets(), [], 0)
        v = adapter.velocity(x, torch.tensor([0.5]), conditions, 3.0, SIZE)
        v.sum().backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None for parameter in weights.parameters.values())
        made.append(v.detach())
    assert 1e-4 < (made[0] - made[1]).norm() / made[0].norm() < 2e-2


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2", "vae"])
def test_pointers_are_refused_in_words(part: str, published: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(published, tmp_path / "model"))
    for file in (model / part).glob("*.safetensors"):
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=str(model)):
        reading.read(spec_of(model), torch.float32)


def test_no_encoder_is_there_where_none_is_wanted(tmp_path: Path) -> None:
    """Whether or not the pipeline's class has a default for it, as Wan's from an image has for CLIP."""
    tiny_wan_i2v().save_pretrained(tmp_path)
    pipe = reading.read(spec_of(tmp_path), torch.float32, encoders=False)
    assert (pipe.text_encoder, pipe.image_encoder) == (None, None)
    assert pipe.transformer is not None


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Trouble(after=99), "owner/name is not on this disk, and the connection to the hub at {} failed"),
        (Trouble(403, "GatedRepo"), "owner/name is gated; accept its terms at {}/owner/name and log in"),
        (Trouble(404, "EntryNotFound"), f"owner/name has no {FILE} at {{}}/owner/name; see there what it has"),
    ],
)
def test_what_the_hub_does_not_give_is_said(trouble: Trouble, words: str, published: Path, online: Hub) -> None:
    online.commit_folder(published)
    online.troubles = {FILE: trouble}
    with pytest.raises(reading.Unreadable, match=words.format(online.url)):
        reading.read(PipelineSpec(path=Location("owner/name")), torch.float32)
    online.troubles = {}
    assert reading.read(PipelineSpec(path=Location("owner/name")), torch.float32).transformer is not None


def test_what_is_here_is_read_whatever_the_hub_says(
    published: Path, online: Hub, mute: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    spec = PipelineSpec(path=Location("owner/name"))
    online.commit_folder(published)
    expected = reading.read(spec, torch.float32).transformer.state_dict()
    mute()
    found = reading.read(spec, torch.float32).transformer.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert "; what is on this disk is used" in caplog.text
    assert not constants.HF_HUB_OFFLINE
