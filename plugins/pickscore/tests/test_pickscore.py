"""PickScore against a direct computation with transformers' `CLIPModel`, and the ranks made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from flowfactory.contracts.reward import GroupReward
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.rewards.scoring import Judge
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import RewardEntry
from flowfactory_plugin_clip.backbone import Backbone
from flowfactory_plugin_clip.tiny import tiny_clip
from flowfactory_plugin_pickscore import PickScoreSpec
from flowfactory_plugin_pickscore.pickscore import PickScore, PickScoreRank, ranks
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

CPU = torch.device("cpu")
PROMPTS = ["a red circle", "two blue squares", "a red circle", "a green triangle above a yellow circle"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("pickscore"), seed=3)


def spec(checkpoint: Path, **keys: Any) -> PickScoreSpec:
    return PickScoreSpec(path=str(checkpoint), processor=str(checkpoint), **keys)


def loaded(reward: PickScore | PickScoreRank, dtype: torch.dtype = torch.float64) -> PickScore | PickScoreRank:
    reward.load(CPU, dtype, lambda key, factory: factory())
    return reward


def samples(prompts: Sequence[str] = PROMPTS) -> list[Sample]:
    media = torch.rand(len(prompts), 3, 40, 52, generator=torch.Generator().manual_seed(2))
    return [Sample(Row(prompt), one, 0, i) for i, (prompt, one) in enumerate(zip(prompts, media, strict=True))]


@torch.no_grad()
def direct(checkpoint: Path, given: Sequence[Sample]) -> Tensor:
    """The score as the authors' model card computes it, in float64."""
    model = CLIPModel.from_pretrained(checkpoint, dtype=torch.float64).eval()
    processor = CLIPProcessor.from_pretrained(checkpoint)
    pictures = [Image.fromarray((s.media * 255).round().byte().permute(1, 2, 0).numpy()) for s in given]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].double()
    tokens = processor(
        text=[s.row.prompt for s in given], padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    return model(pixel_values=pixels, **tokens).logits_per_image.diagonal()


def test_the_score_is_the_authors(checkpoint: Path) -> None:
    scores = loaded(PickScore(spec(checkpoint))).score(samples())
    expected = direct(checkpoint, samples())
    torch.testing.assert_close(torch.tensor(scores, dtype=torch.float64), expected, atol=1e-6, rtol=0)
    assert expected.std() > 1e-2


def test_dividing_by_26_gives_flow_grpos_score(checkpoint: Path) -> None:
    scores = loaded(PickScore(spec(checkpoint, divide=26.0))).score(samples())
    torch.testing.assert_close(
        torch.tensor(scores, dtype=torch.float64), direct(checkpoint, samples()) / 26, atol=1e-6, rtol=0
    )


def test_half_precision_keeps_the_order(checkpoint: Path) -> None:
    exact = torch.tensor(loaded(PickScore(spec(checkpoint))).score(samples()))
    rough = torch.tensor(loaded(PickScore(spec(checkpoint)), torch.bfloat16).score(samples()))
    torch.testing.assert_close(rough, exact, atol=0.2, rtol=0)


def test_ranks_count_from_zero_and_ties_share() -> None:
    assert ranks(torch.tensor([0.3, 0.1, 0.2])).tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert ranks(torch.tensor([5.0, 7.0, 5.0, 1.0])).tolist() == [1.5 / 4, 3 / 4, 1.5 / 4, 0]
    assert ranks(torch.ones(4)).tolist() == [1.5 / 4] * 4
    with pytest.raises(ValueError, match="no rank"):
        ranks(torch.tensor([1.0, torch.nan]))


def test_ranks_do_not_depend_on_the_order_of_the_group() -> None:
    scores = torch.tensor([0.5, 0.5, -1.0, 2.0, 0.5])
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(ranks(scores)[order], ranks(scores[order]))


def test_the_rank_reward_is_the_rank_of_the_score(checkpoint: Path) -> None:
    group = samples(["a red circle"] * 4)
    reward = loaded(PickScoreRank(spec(checkpoint)))
    assert isinstance(reward, GroupReward)
    assert reward.score(group) == ranks(direct(checkpoint, group)).tolist()


def test_two_entries_load_one_backbone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = Backbone.load

    def counted(path: str, *rest: Any) -> Backbone:
        loads.append(path)
        return real(path, *rest)

    monkeypatch.setattr(Backbone, "load", counted)
    entries = [
        RewardEntry(name=name, label=name, weight=weight, spec=spec(checkpoint, frames=frames))
        for name, weight, frames in (("pickscore", 1.0, 4), ("pickscore-rank", 0.3, 8))
    ]
    judge = Judge(entries, {entry.name: Registry().target("rewards", entry.name) for entry in entries}, {})
    judge.load(CPU, torch.float32)
    scores = judge.score(samples())
    assert loads == [str(checkpoint)]
    assert scores["pickscore-rank"].tolist() == ranks(scores["pickscore"]).tolist()


def test_the_default_checkpoint_is_the_authors() -> None:
    defaults = attrs.asdict(PickScoreSpec())
    assert defaults["path"] == "yuvalkirstain/PickScore_v1"
    assert defaults["processor"] == "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    assert defaults["divide"] == 1.0


def test_the_example_is_a_sound_spec() -> None:
    rewards = load_spec(Path(__file__).parents[1] / "examples" / "pickscore.toml", Registry()).rewards
    assert [(entry.name, entry.weight) for entry in rewards] == [("pickscore", 1.0), ("pickscore-rank", 0.5)]
