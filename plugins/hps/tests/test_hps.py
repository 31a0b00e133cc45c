"""HPSv2.1 against a network written as open_clip's is, with the authors' way of seeing an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.spec.structure import load_spec
from flowfactory_plugin_hps import HPSSpec, HPSv3Spec
from flowfactory_plugin_hps.hps import HPS
from flowfactory_plugin_hps.layout import from_transformers, to_transformers
from flowfactory_plugin_isolated import ScorerSpec
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import CLIPModel, CLIPProcessor

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "two blue squares", "a green triangle above a yellow circle"]
HEADS = 2


class Block(nn.Module):
    """A residual attention block, as open_clip's."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, mask: Tensor | None, act: Any) -> Tensor:
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](act(self.mlp["c_fc"](self.ln_2(x))))


def tower(tensors: dict[str, Tensor], prefix: str, x: Tensor, mask: Tensor | None, act: Any) -> Tensor:
    """The blocks whose weights begin with a prefix."""
    numbers = sorted({int(name.removeprefix(prefix).partition(".")[0]) for name in tensors if name.startswith(prefix)})
    for number in numbers:
        own = {
            k.removeprefix(f"{prefix}{number}."): v for k, v in tensors.items() if k.startswith(f"{prefix}{number}.")
        }
        block = Block(x.shape[-1], len(own["mlp.c_fc.bias"])).double().eval()
        block.load_state_dict(own)
        x = block(x, mask, act)
    return x


def text(tensors: dict[str, Tensor], tokens: Tensor, act: Any) -> Tensor:
    """`CLIP.encode_text`: read at the end mark, which has the largest number."""
    x = tensors["token_embedding.weight"][tokens] + tensors["positional_embedding"][: tokens.shape[1]]
    mask = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf, dtype=torch.float64).triu_(1)
    x = tower(tensors, "transformer.resblocks.", x, mask, act)
    x = nn.functional.layer_norm(x, x.shape[-1:], tensors["ln_final.weight"], tensors["ln_final.bias"])
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ tensors["text_projection"]


def vision(tensors: dict[str, Tensor], pixels: Tensor, act: Any) -> Tensor:
    """`VisionTransformer.forward`."""
    patch = tensors["visual.conv1.weight"].shape[-1]
    x = nn.functional.conv2d(pixels, tensors["visual.conv1.weight"], stride=patch).flatten(2).mT
    x = (
        torch.cat([tensors["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        + tensors["visual.positional_embedding"]
    )
    x = nn.functional.layer_norm(x, x.shape[-1:], tensors["visual.ln_pre.weight"], tensors["visual.ln_pre.bias"])
    x = tower(tensors, "visual.transformer.resblocks.", x, None, act)[:, 0]
    x = nn.functional.layer_norm(x, x.shape[-1:], tensors["visual.ln_post.weight"], tensors["visual.ln_post.bias"])
    return x @ tensors["visual.proj"]


def seen(image: Tensor, side: int, antialias: bool) -> Tensor:
    """hpsv2's `ResizeMaxSize` on a tensor, as torchvision computes it."""
    scale = side / float(max(image.shape[1:]))
    size = tuple(round(length * scale) for length in image.shape[1:])
    small = interpolate(image[None], size, mode="bicubic", align_corners=False, antialias=antialias)[0]
    whole = torch.zeros(3, side, side)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    whole[:, top : top + size[0], left : left + size[1]] = small
    return whole


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(HPS.tiny(tmp_path_factory.mktemp("hps")))


def reward(keys: dict[str, Any], dtype: torch.dtype = torch.float64, **more: Any) -> HPS:
    made = HPS(HPSSpec(**{**keys, **more}))
    made.load(CPU, dtype, lambda key, factory: factory())
    return made


def samples(height: int = 40, width: int = 64) -> list[Sample]:
    media = torch.rand(len(PROMPTS), 3, height, width, generator=torch.Generator().manual_seed(2))
    return [Sample(Row(prompt), one, 0, i) for i, (prompt, one) in enumerate(zip(PROMPTS, media, strict=True))]


@torch.no_grad()
def direct(keys: dict[str, Any], given: Sequence[Sample], antialias: bool = True) -> Tensor:
    """As `hpsv2.score` computes it, in float64."""
    tensors = torch.load(Path(keys["weights"]) / keys["file"], weights_only=True)["state_dict"]
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    processor = CLIPProcessor.from_pretrained(keys["processor"])
    config = CLIPModel.from_pretrained(keys["processor"]).config
    act = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": nn.functional.gelu}[
        config.text_config.hidden_act
    ]
    bytes_ = [(s.media * 255).round().byte().float() / 255 for s in given]
    x = torch.stack([seen(image, config.vision_config.image_size, antialias) for image in bytes_])
    own = processor.image_processor
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (own.image_mean, own.image_std))
    tokens = processor.tokenizer([s.row.prompt for s in given], padding=True, return_tensors="pt").input_ids
    images, texts = vision(tensors, ((x - mean) / std).double(), act), text(tensors, tokens, act)
    return (nn.functional.normalize(images, dim=-1) * nn.functional.normalize(texts, dim=-1)).sum(-1)


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (32, 32), (20, 24)])
@pytest.mark.parametrize("antialias", [True, False])
def test_the_score_is_the_authors(keys: dict[str, Any], size: tuple[int, int], antialias: bool) -> None:
    given = samples(*size)
    expected = direct(keys, given, antialias)
    scores = torch.tensor(reward(keys, antialias=antialias).score(given), dtype=torch.float64)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert expected.std() > 1e-3


def test_scale_multiplies(keys: dict[str, Any]) -> None:
    once, scaled = reward(keys).score(samples()), reward(keys, scale=100.0).score(samples())
    assert scaled == pytest.approx([100 * float(score) for score in once if score is not None])


def test_layouts_lead_to_each_other(keys: dict[str, Any]) -> None:
    tensors = dict(CLIPModel.from_pretrained(keys["processor"]).named_parameters())
    back = to_transformers(
        {f"module.{k}": v for k, v in from_transformers(tensors).items()} | {"attn_mask": torch.zeros(1)}
    )
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(ValueError, match=r"it has `visual.attnpool.q_proj.weight`, which no CLIP of open_clip has"):
        to_transformers({"visual.attnpool.q_proj.weight": torch.zeros(1)})


class Dangerous:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("something was unpickled",))


@pytest.mark.parametrize(
    "content", [{"state_dict": Dangerous()}, {"weights": {}}, {"state_dict": {"x": torch.zeros(1)}}, []]
)
def test_other_files_are_refused(keys: dict[str, Any], content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="is no checkpoint of HPSv2"):
        reward(keys, weights=str(tmp_path / "x.pt"))


def test_weights_of_another_network_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    tensors = torch.load(Path(keys["weights"]) / keys["file"], weights_only=True)["state_dict"]
    del tensors["ln_final.bias"]
    tensors["logit_scale"] = torch.zeros(2)
    torch.save({"state_dict": tensors}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"is not of the network that .* describes: 2 tensors differ, `logit_scale`"):
        reward(keys, weights=str(tmp_path / "x.pt"))


def test_hpsv3_is_an_isolated_scorer_of_the_authors_package() -> None:
    spec = HPSv3Spec()
    assert isinstance(spec, ScorerSpec)
    assert (spec.requirements, spec.python) == (("hpsv3==1.0.0",), "3.10")
    file, _, function = spec.score.rpartition(":")
    assert f"def {function}(images, prompts, rows):" in Path(file).read_text()
    registry = Registry()
    assert registry.find("rewards", "hpsv3").provides.spec is HPSv3Spec
    assert registry.target("rewards", "hpsv3").__name__ == "Isolated"


def test_the_defaults_are_the_authors() -> None:
    defaults = attrs.asdict(HPSSpec())
    assert (defaults["weights"], defaults["file"]) == ("xswu/HPSv2", "HPS_v2.1_compressed.pt")
    assert (defaults["processor"], defaults["scale"]) == ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 1.0)


def test_the_example_is_a_sound_spec() -> None:
    spec = load_spec(Path(__file__).parents[1] / "examples" / "hps.toml", Registry())
    assert isinstance(spec.rewards[0].spec, HPSSpec)
