"""What is exported does in diffusers, called as its users do, what was trained here."""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
import torch
from diffusers import FluxPipeline
from flowfactory.cli.main import main
from flowfactory.errors import RunError
from flowfactory.export.export import Exported
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy import loras
from flowfactory.policy.kohya import to_kohya
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Lora
from more_families import small_sizes
from peft import LoraConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from trained import FULL, LORA, Trained, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """A run of a family in a folder of its own; see `trained.train`."""
    return lambda *family, **options: train(tmp_path_factory.mktemp("run"), *family, **options)


@pytest.fixture(scope="module")
def shared(trained: Callable[..., Trained]) -> Callable[..., Trained]:
    """The same run for the same arguments, for tests that change nothing of it but its exports."""
    return functools.cache(trained)


@pytest.fixture(scope="module")
def exports(shared: Callable[..., Trained]) -> Callable[[str, str], Exported]:
    """What is exported of a family's shared run in a form, for tests that only read it."""

    @functools.cache
    def exports(name: str, form: str) -> Exported:
        made = shared(name)
        return made.export(form, folder=made.folder / f"only-{form}")

    return exports


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan", "wan-2.2"])
def test_lora_does_in_diffusers_what_it_did_in_memory(
    name: str,
    shared: Callable[..., Trained],
    exports: Callable[[str, str], Exported],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, exported = shared(name), exports(name, "lora")
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
    plain = made.folder / "plain"
    plain.mkdir(exist_ok=True)
    (plain / "README.md").write_text(card)
    return plain


DOUBLE = 'targets = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v", "ff.net.2", "attn.to_add_out"]'


@pytest.mark.parametrize(("name", "targets"), [("qwen-image", ""), ("wan-2.2", ""), ("flux", DOUBLE)])
def test_kohyas_layout_is_read_by_diffusers(
    name: str, targets: str, shared: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shared(name, targets=targets)
    exported = made.export("kohya")
    keys = load_file(exported.folder / "small.safetensors").keys()
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
    read = FluxPipeline.lora_state_dict(to_kohya(FluxTransformer2DModel(), state, scale=3.0))
    assert not read.pop("transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight").any()
    assert len(read) == len(state) + 1
    for key in state:
        if key.endswith("lora_A.weight"):
            ours = state[key.replace("lora_A", "lora_B")] @ state[key] * 6.0 / 2
            theirs = read[f"transformer.{key.replace('lora_A', 'lora_B')}"] @ read[f"transformer.{key}"]
            torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize(("name", "tuning"), [("sd3", LORA), ("wan-2.2", LORA), ("sd3", FULL), ("flux", FULL)])
def test_whole_pipelines_do_in_diffusers_what_was_trained(
    name: str, tuning: str, shared: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shared(name, tuning)
    exported = made.export("merged")
    assert exported.difference == 0
    assert exported.rounding <= 1e-5
    reference = made.by_diffusers(exported, monkeypatch)
    assert made.furthest_from(reference) <= 1e-5


@pytest.mark.parametrize("name", ["sd3", "wan"])
@pytest.mark.parametrize(("form", "tuning"), [("lora", LORA), ("merged", LORA), ("merged", FULL)])
def test_low_precision(name: str, form: str, tuning: str, shared: Callable[..., Trained]) -> None:
    """Parts of Wan stay in float32."""
    exported = shared(name, tuning, precision="bf16").export(form)
    assert exported.difference <= 1e-5
    assert (exported.rounding > 0) is (tuning == LORA)
    assert "dtype=torch.bfloat16" in (exported.folder / "README.md").read_text()


def test_the_card_says_what_it_is_and_how_it_was_made(trained: Callable[..., Trained]) -> None:
    made = trained("sd3")
    (made.folder / "before-after.png").write_bytes(b"picture")
    (made.folder / "report-curves").mkdir()
    Image.new("RGB", (600, 400)).save(made.folder / "report-curves/reward.png")
    (made.folder / "report-curves/held-out-evaluation.png").symlink_to(Path(__file__))
    exported = made.export()
    card = (exported.folder / "README.md").read_text()
    for line in (
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "license: other",
        "num_inference_steps=4",
        "guidance_scale=4.5",
        "# small",
        "These are the weights `ema` after epoch 3.",
        "| reward/jpeg-compressibility | -2.5000 (1) | -1.5000 (3) |",
        "![Reward](reward.png)",
        "![before and after](before-after.png)",
        'name = "grpo"',
    ):
        assert line in card, line
    assert (exported.folder / "before-after.png").read_bytes() == b"picture"
    assert Image.open(exported.folder / "reward.png").width > 400
    assert not (exported.folder / "held-out-evaluation.png").exists()  # it leads out of the run's folder


def test_no_file_of_an_export_says_where_this_machine_keeps_things(
    shared: Callable[..., Trained], exports: Callable[[str, str], Exported]
) -> None:
    made = shared("sd3")
    for form in ("lora", "merged"):
        for file in exports("sd3", form).folder.rglob("*"):
            if file.is_file():
                assert str(made.folder).encode() not in file.read_bytes(), file
    assert made.export("lora", folder=made.folder.parent / "x").folder.is_dir()


@pytest.mark.parametrize(("rank", "alpha"), [(3, 5.0), (2, 7.0), (5, 1.0)])
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_kohyas_layout_in_bf16_at_any_scale(name: str, rank: int, alpha: float, shared: Callable[..., Trained]) -> None:
    made = shared(name, f"[lora]\nrank = {rank}\nalpha = {alpha}", precision="bf16")
    assert made.export("kohya").difference <= 1e-5


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_kohyas_layout_where_diffusers_does_not_read_it(name: str, exports: Callable[[str, str], Exported]) -> None:
    """It is read back by the layout itself; the card says so, and gives no Python that would fail."""
    exported = exports(name, "kohya")
    assert exported.difference <= 1e-5
    assert (exported.rounding > 1e-3) is False
    card = (exported.folder / "README.md").read_text()
    assert "In Python, diffusers reads" in card
    assert "```python" not in card
    keys = load_file(exported.folder / "small.safetensors").keys()
    assert any(
        re.fullmatch(r"lora_unet_(joint|single)_blocks_0_(x_block_attn_qkv|linear1)\.alpha", key) for key in keys
    )


@pytest.mark.parametrize("form", ["lora", "kohya", "merged"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_number_format_can_be_chosen(form: str, dtype: str, shared: Callable[..., Trained]) -> None:
    made = shared("wan" if form == "kohya" else "sd3", "[lora]\nrank = 3\nalpha = 5.0")
    exported = made.export(form, dtype=dtype)
    assert exported.difference <= 1e-5
    assert exported.rounding > 0
    files = [*exported.folder.glob("*.safetensors"), *exported.folder.glob("transformer/*.safetensors")]
    found = {tensor.dtype for file in files for key, tensor in load_file(file).items() if "alpha" not in key}
    assert found == {{"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]}


def test_an_older_export_is_replaced_and_nothing_else_is(shared: Callable[..., Trained]) -> None:
    made = shared("sd3")
    place = made.folder / "out"
    place.mkdir()
    made.export("lora", folder=place)
    made.export("kohya", folder=place)
    assert [f.name for f in place.glob("*.safetensors")] == ["small.safetensors"]
    (place / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds what no export has written \(`notes.txt`\); choose an empty folder"):
        made.export("lora", folder=place)
    assert (place / "notes.txt").read_text() == "mine"
    assert not list(made.folder.glob(".writing-*"))


def test_files_have_the_modes_of_others_and_say_what_they_are(shared: Callable[..., Trained]) -> None:
    made = shared("sd3")
    made.export("kohya")
    exported = made.export("lora")
    (made.folder / "other").touch()
    for file in [*exported.folder.iterdir(), *(made.folder / "checkpoints").rglob("*.safetensors")]:
        assert file.stat().st_mode == (made.folder / "other").stat().st_mode, file
    for file in (exported.folder / "pytorch_lora_weights.safetensors", made.folder / "export/kohya/small.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        assert metadata["modelspec.title"] == "small"
        assert metadata["modelspec.architecture"] == "stable-diffusion-v3/lora"
        assert metadata["ss_sd_model_name"] == "model"


@pytest.mark.parametrize("name", ["sd3", "qwen-image-edit"])
def test_a_run_is_exported_where_its_prompts_and_its_base_are_not(
    name: str, trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_sizes(monkeypatch)
    made = trained(name)
    expected = load_file(made.export().folder / "pytorch_lora_weights.safetensors")
    (made.folder / "prompts.jsonl").unlink()
    base = (made.folder / "model").rename(made.folder / "moved")
    with pytest.raises(RunError, match=r"there is no .*/model, its base model; --base says where it is now"):
        made.export(folder=made.folder / "out")
    exported = made.export(folder=made.folder / "out", base=str(base))
    assert exported.difference <= 1e-5
    found = load_file(exported.folder / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_the_set_and_the_epoch_can_be_chosen(shared: Callable[..., Trained]) -> None:
    made = shared("sd3")
    chosen = [made.export(weights=name, epoch=3, folder=made.folder / name) for name in ("current", "ema")]
    a, b = (load_file(e.folder / "pytorch_lora_weights.safetensors") for e in chosen)
    assert all(not torch.equal(a[key], b[key]) for key in a)


def test_what_cannot_be_exported_is_refused_in_words(trained: Callable[..., Trained]) -> None:
    made = trained("sd3", ema=0)
    with pytest.raises(RunError, match="has no checkpoint epoch-0002; there is epoch-0003"):
        made.export(epoch=2)
    with pytest.raises(RunError, match="has no weights 'ema'; there are current"):
        made.export(weights="ema")
    made = trained("z-image")
    with pytest.raises(RunError, match="there is no kohya layout for ZImageTransformer2DModel; there is for Flux"):
        made.export("kohya")
    assert not (made.folder / "export").exists()


def test_an_export_that_went_wrong_is_no_good(trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained("sd3")
    true_dict = LoraConfig.to_dict
    monkeypatch.setattr(LoraConfig, "to_dict", lambda config: {**true_dict(config), "lora_alpha": 1.0})
    with pytest.raises(RunError, match=r"is no good: read back, its velocities are .* off the largest"):
        made.export()
    assert not (made.folder / "export").exists()


def test_the_command(run: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = run("a", "-full", "lora.rank=4")
    capsys.readouterr()
    assert main(["export", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'export/lora'}\n"
    assert "before-after.png" in (folder / "export/lora/README.md").read_text()
    to = tmp_path / "elsewhere"
    assert main(["export", str(folder), "--form", "merged", "--weights", "current", "--to", str(to), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(to)
    assert told["difference"] == 0
    assert main(["export", str(folder), "--epoch", "7"]) == 1
    assert "has no checkpoint epoch-0007" in capsys.readouterr().err
    assert main(["export", str(tmp_path)]) == 2


@pytest.mark.parametrize("form", ["lora", "kohya"])
@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan", "wan-2.2"])
def test_training_goes_on_from_an_export(
    name: str, form: str, shared: Callable[..., Trained], exports: Callable[[str, str], Exported]
) -> None:
    """What was exported is read back as it was trained: the same layers and ranks, and to rounding the same numbers."""
    made, exported = shared(name), exports(name, form)
    adapter = PipelineAdapter(made.spec.model.spec)
    adapter.load(torch.device("cpu"), torch.float32)
    given = loras.read(str(exported.folder), adapter.networks(), adapter.pipe)
    began = Weights(adapter.networks(), Lora(from_="x"), [], [], 0, start=given)
    ours = Weights.tensors(began, "current")
    trained_here = load_file(made.folder / "checkpoints/epoch-0003/ema.safetensors")
    assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in trained_here.items()}
    for key in (key for key in ours if key.endswith("lora_A.default.weight")):
        module, other = key.split(".lora_A.")[0], key.replace("lora_A", "lora_B")
        scale = began.alphas[module] / len(ours[key])
        torch.testing.assert_close(ours[other] @ ours[key] * scale, trained_here[other] @ trained_here[key] * 3.0)


CHANGING = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}
"""What Python tells a hook that is about to happen to a disk."""


def held(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def forked(work: Callable[[], object], place: Path, before: Callable[[str, str], object]) -> int:
    """How a fork ends that does some work, and is asked before each change of the disk around a place."""
    child = os.fork()
    if child == 0:
        asking = [False]

        def look(event: str, given: tuple[object, ...]) -> None:
            if event in CHANGING and str(place.parent) in str(given[0]) and not asking[0]:
                asking[0] = True
                before(event, str(given[0]))
                asking[0] = False

        sys.addaudithook(look)
        code = 1
        with suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("form", ["lora", "kohya", "merged"])
def test_an_export_is_as_it_was_or_whole_at_every_moment(
    form: str, shared: Callable[..., Trained], tmp_path: Path
) -> None:
    made, place, seen = shared("sd3"), tmp_path / "out" / form, tmp_path / "seen.txt"
    made.export(form, folder=place, weights="current")
    old = held(place)

    def note(*_: str) -> None:
        with seen.open("a") as file:
            file.write(f"{held(place)}\n")

    assert forked(lambda: made.export(form, folder=place), place, note) == 0
    assert list(dict.fromkeys(seen.read_text().splitlines())) == [f"{old}", "{}", f"{held(place)}"]


def test_what_a_killed_export_leaves_is_taken_away_by_the_next(shared: Callable[..., Trained], tmp_path: Path) -> None:
    made, place = shared("sd3"), tmp_path / "out" / "lora"

    def killed(wanted: Callable[[str, str], bool]) -> None:
        def before(event: str, path: str) -> None:
            if wanted(event, path):
                os.kill(os.getpid(), signal.SIGKILL)

        assert forked(lambda: made.export(folder=place), place, before) == -signal.SIGKILL

    killed(lambda event, path: "README" in path)
    killed(lambda event, path: event == "os.rename")
    assert len(list(place.parent.iterdir())) == 1
    assert not place.exists()
    made.export(folder=place)
    assert list(place.parent.iterdir()) == [place]
    whole = held(place)
    killed(lambda event, path: event == "os.rename" and ".writing-" in path)  # what was there is put aside
    assert not place.exists()
    made.export(folder=place)
    assert (held(place), list(place.parent.iterdir())) == (whole, [place])


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_that_cannot_be_written_says_so_and_leaves_the_old_one(
    form: str, shared: Callable[..., Trained], tmp_path: Path
) -> None:
    made, place, said = shared("sd3"), tmp_path / "out" / form, tmp_path / "said.txt"
    made.export(form, folder=place)
    whole = held(place)
    most = max(map(len, whole.values())) - 1

    def work() -> None:
        with said.open("w") as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            try:
                made.export(form, folder=place)
            except RunError as error:
                file.write(str(error))

    assert forked(work, place, lambda *_: None) == 0
    assert re.fullmatch(rf"{place} cannot be written: .*File too large.*", said.read_text())
    assert (held(place), list(place.parent.iterdir())) == (whole, [place])
