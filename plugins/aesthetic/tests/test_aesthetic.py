"""The predictor against the authors' own lines, on checkpoints of the real classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import RewardEntry
from flowfactory_plugin_aesthetic import AestheticSpec, head
from flowfactory_plugin_aesthetic.aesthetic import Aesthetic, tiny_head
from flowfactory_plugin_clip import CLIPSpec
from flowfactory_plugin_clip.backbone import Backbone
from flowfactory_plugin_clip.tiny import tiny_clip
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor

CPU = torch.device("cpu")
WIDTH = 32


class MLP(nn.Module):
    """As christophschuhmann/improved-aesthetic-predictor and TRL have it, at another width."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((WIDTH, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))
        one, two, three, four, five = (nn.Linear(*size) for size in sizes)
        dropouts = nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)
        self.layers = nn.Sequential(one, dropouts[0], two, dropouts[1], three, dropouts[2], four, five)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, and a head in the authors' file format beside it."""
    folder = tiny_clip(tmp_path_factory.mktemp("aesthetic"), seed=5)
    torch.manual_seed(0)
    torch.save(MLP().state_dict(), folder / "aesthetic-model.pth")
    return folder


def reward(checkpoint: Path, dtype: torch.dtype = torch.float64, **keys: Any) -> Aesthetic:
    made = Aesthetic(AestheticSpec(path=str(checkpoint), **{"head": str(checkpoint / "aesthetic-model.pth"), **keys}))
    made.load(CPU, dtype, lambda key, factory: factory())
    return made


def images(count: int, height: int = 40, width: int = 52) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def samples(media: Sequence[Tensor]) -> list[Sample]:
    return [Sample(Row("anything"), one, 0, i) for i, one in enumerate(media)]


@torch.no_grad()
def direct(checkpoint: Path, media: Sequence[Tensor]) -> Tensor:
    """As TRL's example computes it, in float64."""
    model = CLIPModel.from_pretrained(checkpoint, dtype=torch.float64).eval()
    processor = CLIPProcessor.from_pretrained(checkpoint)
    mlp = MLP().double().eval()
    mlp.load_state_dict(torch.load(checkpoint / "aesthetic-model.pth", weights_only=True))
    pictures = [Image.fromarray((one * 255).round().byte().permute(1, 2, 0).numpy()) for one in media]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].double()
    embed = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    embed = embed / torch.linalg.vector_norm(embed, dim=-1, keepdim=True)
    return mlp.layers(embed).squeeze(1)


def test_the_score_is_the_authors(checkpoint: Path) -> None:
    media = images(4)
    expected = direct(checkpoint, media)
    scores = torch.tensor(reward(checkpoint).score(samples(media)), dtype=torch.float64)
    torch.testing.assert_close(scores, expected, atol=1e-9, rtol=0)
    assert expected.std() > 1e-5
    tenth = torch.tensor(reward(checkpoint, divide=10.0).score(samples(media)), dtype=torch.float64)
    torch.testing.assert_close(tenth, expected / 10, atol=1e-9, rtol=0)


def test_a_folder_and_a_safetensors_file_do_as_well(checkpoint: Path, tmp_path: Path) -> None:
    by_folder = reward(checkpoint, head=str(checkpoint)).score(samples(images(1)))
    assert by_folder == reward(checkpoint).score(samples(images(1)))
    own = tiny_head(tmp_path / "head.safetensors", WIDTH)
    assert reward(checkpoint, head=str(own)).head.width == WIDTH


def test_the_first_predictor_is_one_layer() -> None:
    layer = nn.Linear(WIDTH, 1)
    own = head.Head(head.layers_of(layer.state_dict(), Path("x.pth")))
    x = images(1).flatten()[: 2 * WIDTH].reshape(2, WIDTH)
    torch.testing.assert_close(own(x.double()), layer(x).double()[:, 0].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "do not lead to one number"),
        ({"layers.0.weight": torch.zeros(1, 4)}, "do not lead to one number"),
        ({"layers.0.weight": torch.zeros(2, 4), "layers.0.bias": torch.zeros(2)}, "do not lead to one number"),
        ({"mlp.weight": torch.zeros(1, 4)}, "it has `mlp.weight`"),
    ],
)
def test_other_files_are_no_predictors(tensors: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=said):
        head.load(str(tmp_path / "head.pth"), "", None)


def test_a_predictor_with_more_between_its_layers_is_refused() -> None:
    layers = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Dropout(0.2), nn.Linear(2, 1))
    tensors = {f"layers.{name}": tensor for name, tensor in layers.state_dict().items()}
    with pytest.raises(ValueError, match="more than dropout lies between its layers"):
        head.layers_of(tensors, Path("relu.pth"))


class Dangerous:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("something was unpickled",))


@pytest.mark.parametrize("name", ["head.pth", "head.safetensors"])
def test_nothing_but_tensors_is_unpickled(name: str, tmp_path: Path) -> None:
    torch.save({"layers.0.weight": Dangerous()}, tmp_path / name)
    with pytest.raises(ValueError, match="holds no tensors"):
        head.load(str(tmp_path / name), "", None)
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="holds no tensors"):
        head.load(str(tmp_path / name), "", None)


def test_a_head_for_another_clip_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    own = tiny_head(tmp_path / "head.safetensors", 768)
    with pytest.raises(ValueError, match=r"is for embeddings of 768 numbers, and those of .* have 32"):
        reward(checkpoint, head=str(own))


@pytest.mark.parametrize("pool", ["mean", "min", "max"])
def test_a_video_pools_the_scores_of_evenly_spread_frames(checkpoint: Path, pool: str) -> None:
    video = images(6)
    found = reward(checkpoint, frames=3, pool=pool).score(samples([video]))
    each = direct(checkpoint, list(video[[0, 2, 4]]))
    assert found == pytest.approx([float({"mean": each.mean(), "min": each.min(), "max": each.max()}[pool])])


def test_clip_and_it_load_one_backbone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = Backbone.load

    def counted(path: str, *rest: Any) -> Backbone:
        loads.append(path)
        return real(path, *rest)

    monkeypatch.setattr(Backbone, "load", counted)
    specs = {
        "clip": CLIPSpec(path=str(checkpoint)),
        "aesthetic": AestheticSpec(path=str(checkpoint), head=str(checkpoint)),
    }
    entries = [RewardEntry(name=name, label=name, spec=spec) for name, spec in specs.items()]
    judge = Judge(entries, {name: Registry().target("rewards", name) for name in specs}, {})
    judge.load(CPU, torch.float32)
    assert loads == [str(checkpoint)]


def test_the_defaults_are_the_authors() -> None:
    defaults = attrs.asdict(AestheticSpec())
    assert (defaults["path"], defaults["divide"]) == ("openai/clip-vit-large-patch14", 1.0)
    assert (defaults["head"], defaults["head_file"]) == ("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth")


def test_the_example_is_a_sound_spec() -> None:
    rewards = load_spec(Path(__file__).parents[1] / "examples" / "aesthetic.toml", Registry()).rewards
    assert [(entry.name, entry.weight) for entry in rewards] == [("aesthetic", 1.0), ("clip", 0.0)]
