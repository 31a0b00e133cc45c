"""Weights from elsewhere: LoRA as others write it does here what it does in diffusers; what does not fit is refused."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, PRXPipeline
from diffusers.loaders import single_file_utils
from flowfactory.policy import kohya, loras
from flowfactory.policy.loras import Given
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Full, Lora
from flowfactory_plugin_wan.checkpoint import tiny_wan
from lowrank import loaded, trained, velocity, written
from safetensors.torch import save_file
from torch import Tensor

LAYOUTS = ["diffusers", "diffusers without metadata", "kohya", "alphas", "peft"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_of_others_does_what_it_does_in_diffusers(
    layout: str, checkpoint: Path, pipe: Any, tmp_path: Path
) -> None:
    location = written(tmp_path, checkpoint, layout)
    reference = FluxPipeline.from_pretrained(checkpoint)
    before = velocity(reference.transformer)
    trained(reference)
    wanted = velocity(reference.transformer)
    assert (wanted - before).abs().max() > 1e-2
    network, weights = loaded(pipe, location)
    assert (velocity(network) - wanted).abs().max() < 1e-5
    assert all(p.dtype == torch.float32 for p in weights.parameters.values())
    if layout != "peft":
        theirs = FluxPipeline.from_pretrained(checkpoint)
        theirs.load_lora_weights(location)
        assert (velocity(theirs.transformer) - velocity(network)).abs().max() < 1e-6


def test_ranks_and_alphas_are_those_of_each_layer(checkpoint: Path, pipe: Any, tmp_path: Path) -> None:
    _, weights = loaded(pipe, written(tmp_path, checkpoint, "diffusers"))
    shapes = {name: tuple(t.shape) for name, t in weights.tensors("current").items() if "lora_A" in name}
    assert shapes == {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.default.weight": (4, 32),
        "transformer.transformer_blocks.0.attn.to_out.0.lora_A.default.weight": (2, 32),
        "transformer.transformer_blocks.0.ff.net.2.lora_A.default.weight": (4, 128),
    }
    assert {module.rpartition(".attn.")[2]: alpha for module, alpha in weights.alphas.items()} == {
        "to_q": 6.0,
        "to_out.0": 5.0,
        "transformer.transformer_blocks.0.ff.net.2": 6.0,
    }


def test_a_rank_stabilised_scale_is_kept(checkpoint: Path, pipe: Any, tmp_path: Path) -> None:
    location = written(tmp_path, checkpoint, "peft")
    config = json.loads((location / "adapter_config.json").read_text())
    config |= {"use_rslora": True, "rank_pattern": {}, "alpha_pattern": {}}
    (location / "adapter_config.json").write_text(json.dumps(config))
    _, weights = loaded(pipe, location)
    assert weights.alphas["transformer.transformer_blocks.0.attn.to_q"] == 6.0 * 4**0.5


Q = "transformer.transformer_blocks.0.attn.to_q"
PAIR = {f"{Q}.lora_A.weight": torch.ones(4, 32), f"{Q}.lora_B.weight": torch.ones(32, 4)}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({**PAIR, f"{Q}.lora_B.weight": torch.ones(32, 3)}, "has no two factors of one rank for `{Q}`, but lora_A (4"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 32)}, "has no two factors of one rank for `{Q}`, but lora_A (4, 32)"),
        (
            {**PAIR, f"{Q}.lora_A.weight": torch.ones(4, 48)},
            "is of another network: it has lora_A (4, 48) and lora_B (32, 4) for `{Q}`, where lora_A (4, 32) and",
        ),
        (
            {key.replace("to_q", "to_qq"): t for key, t in PAIR.items()},
            "to_qq`, which `transformer` does not have; ",
        ),
        (
            {key.replace("to_q.", "norm_q."): t for key, t in PAIR.items()},
            "adapts `transformer_blocks.0.attn.norm_q` of `transformer`, a RMSNorm, which cannot be done",
        ),
        (
            {**PAIR, "text_encoder.layers.0.q.lora_A.weight": torch.ones(2, 2)},
            "has no two factors of one rank for `text_encoder.layers.0.q`",
        ),
        (
            {**PAIR, **{f"text_encoder.layers.0.q.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}},
            "has LoRA for `text_encoder`, which is not trained here (`layers.0.q`)",
        ),
        (
            {**PAIR, f"{Q}.lora_magnitude_vector": torch.ones(32)},
            "is no plain LoRA: it has `{Q}.lora_magn",
        ),
        ({**PAIR, f"{Q}.lora_B.bias": torch.ones(32)}, "is no plain LoRA: it has `{Q}.lora_B.bias`"),
        (
            {**PAIR, "transformer.extra.lora_A.weird": torch.ones(2)},
            "has `transformer.extra.lora_A.weird`, which",
        ),
        ({"lora_unet_nonsense.lora_down.weight": torch.ones(2, 2)}, "cannot be understood: diffusers "),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tensors: dict[str, Tensor], words: str, pipe: Any, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=re.escape(words.replace("{Q}", Q))):
        loras.read(str(tmp_path / "mine.safetensors"), {"transformer": pipe.transformer}, pipe)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (
            {"rank": 8},
            "[lora] rank is 8, and in mine `transformer_blocks.0.attn.to_q` of `transformer` has 4; ",
        ),
        ({"alpha": 2.0}, "[lora] alpha is 2, and in mine `transformer_blocks.0.attn.to_q` of `transformer` has 4"),
        ({"targets": ("to_k",)}, "[lora] targets do not name `transformer_blocks.0.attn.to_q` of `transformer`, which"),
        ({"targets": ("to_q", "to_k")}, "[lora] targets name `to_k`, and mine adapts no such layer of `transformer`"),
        ({"rank": 4, "alpha": 4.0, "targets": ("attn.to_q",)}, ""),
    ],
)
def test_what_a_spec_says_beside_it_has_to_agree(lora: dict[str, Any], words: str, pipe: Any, tmp_path: Path) -> None:
    save_file(PAIR, tmp_path / "mine.safetensors")
    networks = {"transformer": pipe.transformer}
    read = loras.read(str(tmp_path / "mine.safetensors"), networks, pipe)
    given = Given("mine", read.lora)
    if not words:
        assert len(Weights(networks, Lora(from_="x", **lora), [], [], 0, start=given).parameters) == 2
        return
    with pytest.raises(ValueError, match=re.escape(words)):
        Weights(networks, Lora(from_="x", **lora), [], [], 0, start=given)


def test_each_of_two_networks_has_its_own_file(tmp_path: Path) -> None:
    pipe: Any = tiny_wan(2)
    networks = {name: getattr(pipe, name) for name in ("transformer", "transformer_2")}
    module = "transformer.blocks.0.attn1.to_q"
    width = networks["transformer"].blocks[0].attn1.to_q.in_features
    for number, folder in enumerate((tmp_path, tmp_path / "transformer_2"), 1):
        folder.mkdir(exist_ok=True)
        tensors = {f"{module}.lora_A.weight": number * torch.ones(2, width)}
        tensors |= {f"{module}.lora_B.weight": torch.ones(width, 2)}
        save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    read = loras.read(str(tmp_path), networks, pipe)
    assert [float(read.lora[n].factors["blocks.0.attn1.to_q"][0][0, 0]) for n in networks] == [1.0, 2.0]
    (tmp_path / "transformer_2/pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(ValueError, match="has no LoRA for `transformer_2`"):
        loras.read(str(tmp_path), networks, pipe)


# --- whole networks ------------------------------------------------------------------------------------------------


def test_whole_weights_are_read_from_a_pipeline_a_network_and_a_file(
    pipe: Any, other: Any, tmp_path: Path, checkpoint: Path
) -> None:
    other.save_pretrained(tmp_path / "network", max_shard_size="50KB")
    changed = FluxPipeline.from_pretrained(checkpoint, transformer=other)
    changed.save_pretrained(tmp_path / "pipeline")
    save_file(dict(other.named_parameters()), tmp_path / "mine.safetensors")
    wanted = velocity(other)
    for where in ("network", "pipeline", "mine.safetensors"):
        networks = {"transformer": FluxPipeline.from_pretrained(checkpoint).transformer}
        given = loras.read(str(tmp_path / where), networks, pipe)
        Weights(networks, Full(from_="x"), [], [], 0, start=given)
        assert torch.equal(velocity(networks["transformer"]), wanted), where


def test_full_fine_tuning_begins_with_a_lora_that_is_added(checkpoint: Path, pipe: Any, tmp_path: Path) -> None:
    location = written(tmp_path, checkpoint, "diffusers")
    network, _ = loaded(FluxPipeline.from_pretrained(checkpoint), location)
    networks = {"transformer": pipe.transformer}
    weights = Weights(networks, Full(from_="x"), [], ["reference"], 0, start=loras.read(str(location), networks, pipe))
    assert (velocity(pipe.transformer) - velocity(network)).abs().max() < 1e-5
    assert not any("lora" in name for name in weights.parameters)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: {**t, "surplus.weight": torch.ones(2)},
            "has `transformer.surplus.weight`, which the model",
        ),
        (
            lambda t: {k: v for k, v in t.items() if k != "proj_out.bias"},
            "proj_out.bias has the shape none",
        ),
        (lambda t: {**t, "proj_out.bias": torch.ones(3)}, "transformer.proj_out.bias has the shape (3,), not (16,)"),
    ],
)
def test_whole_weights_of_another_network_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: str, pipe: Any, tmp_path: Path
) -> None:
    save_file(change(dict(pipe.transformer.named_parameters())), tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=re.escape(words)):
        loras.read(str(tmp_path / "mine.safetensors"), {"transformer": pipe.transformer}, pipe)


def test_lora_does_not_begin_with_whole_weights(pipe: Any, tmp_path: Path) -> None:
    save_file(dict(pipe.transformer.named_parameters()), tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="has whole weights, not LoRA; make them the model's"):
        loaded(pipe, tmp_path / "mine.safetensors")


def test_the_names_of_sd3_are_those_of_its_original_checkpoint() -> None:
    """As diffusers knows them, which reads whole checkpoints of that naming but no LoRA."""
    source = inspect.getsource(single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers)
    original = set(re.findall(r"joint_blocks\.\{i\}\.([\w.]+)\.weight", source))
    (blocks,) = kohya.LAYOUTS["SD3Transformer2DModel"].values()
    assert blocks.modules
    assert set(blocks.modules) <= {name.replace(".", "_") for name in original}


@pytest.mark.parametrize(("kind", "takes"), [(FluxPipeline, True), (PRXPipeline, False)])
def test_a_pipeline_that_loads_lora_for_another_network_than_it_has_takes_none(
    kind: type[DiffusionPipeline], takes: bool
) -> None:
    assert loras.takes_lora(kind.__new__(kind)) is takes
