"""Models of published sizes with random weights, made where they compute: nothing is read from a hub or a disk.

A checkpoint is a folder of configs: those of the smallest checkpoint of a family, with the sizes of the published one
in their place. Text encoders have the published width and one layer where only what they give matters.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from flowfactory.contracts.types import Conditions, Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.processes.distributed import DTYPES
from flowfactory.spec.tables import Spec
from flowfactory.training.bench import Encoding

Sizes = Mapping[str, Mapping[str, Any]]
"""By the model's name in its pipeline, keys of its config."""

FLUX_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "latent_channels": 16,
}
WIDE = {"base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
CLIP = {"hidden_size": 768, "projection_dim": 768, "intermediate_size": 3072, "num_attention_heads": 12}

FLUX: Sizes = {
    "transformer": {
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": [16, 56, 56],
    },
    "vae": FLUX_VAE,
    "text_encoder": {**CLIP, "num_hidden_layers": 1},
    "text_encoder_2": {"d_model": 4096, "num_layers": 1},
}
FLUX_SHORT: Sizes = {
    **FLUX,
    "transformer": {**FLUX["transformer"], "num_layers": 4, "num_single_layers": 8},
}
"""As wide, and about a fifth as deep."""
FLUX_WHOLE: Sizes = {
    **FLUX,
    "text_encoder": {**CLIP, "num_hidden_layers": 12, "vocab_size": 49408},
    "text_encoder_2": {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_heads": 64,
        "num_layers": 24,
        "vocab_size": 32128,
    },
}
"""With text encoders of their whole sizes."""
QWEN: Sizes = {
    "transformer": {
        "num_layers": 60,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "axes_dims_rope": [16, 56, 56],
    },
    "vae": WIDE,
}
WAN: Sizes = {
    "transformer": {
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "ffn_dim": 8960,
        "num_layers": 30,
        "text_dim": 4096,
        "rope_max_seq_len": 1024,
    },
    "vae": WIDE,
    "text_encoder": {"d_model": 4096, "num_layers": 1},
}
QWEN_TEXT = {"hidden_size": 3584, "intermediate_size": 3584, "num_attention_heads": 28}


def resize(folder: Path, sizes: Sizes) -> None:
    """Put sizes into the configs of a checkpoint, and take its weights away."""
    for name, keys in sizes.items():
        file = folder / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(keys)))
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()


def resize_text_of_qwen(folder: Path) -> None:
    """The language model's sizes lie a table deeper, and its rotary sections follow from the width of a head."""
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= {**QWEN_TEXT, "num_key_value_heads": 4}
    config["text_config"].pop("head_dim", None)
    for name in ("rope_parameters", "rope_scaling"):
        if config["text_config"].get(name):
            config["text_config"][name]["mrope_section"] = [16, 24, 24]
    config["vision_config"]["out_hidden_size"] = QWEN_TEXT["hidden_size"]
    file.write_text(json.dumps(config))


def pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline of a folder of configs, its models drawn at random on `device` in `dtype`."""
    table: Mapping[str, Any] = DiffusionPipeline.load_config(str(folder))
    made = {name: value for name, value in table.items() if not name.startswith("_")}
    for name, value in made.items():
        if isinstance(value, list | tuple) and len(value) == 2:
            made[name] = None if value[0] is None else part(folder / name, *value, device, dtype)
    pipe: DiffusionPipeline = getattr(diffusers, str(table["_class_name"]))(**made)
    return pipe


def part(folder: Path, library: str, kind: str, device: torch.device, dtype: torch.dtype) -> Any:
    """One part: a model from its config alone, anything else as it lies there."""
    cls: Any = getattr(importlib.import_module(library), kind)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            if issubclass(cls, diffusers.ModelMixin):
                return cls.from_config(cls.load_config(str(folder))).to(device, dtype)
            if issubclass(cls, transformers.PreTrainedModel):
                return cls(cls.config_class.from_pretrained(str(folder))).to(device, dtype)
    finally:
        torch.set_default_dtype(before)
    return cls.from_pretrained(str(folder))


@attrs.frozen(eq=False)
class Kept:
    """Conditions of rows that were encoded once, whose encoders are gone."""

    known: Mapping[str, Conditions]

    def __getitem__(self, row: Row) -> Conditions:
        return self.known[row.prompt]


def loading(cached: bool) -> Callable[..., Any]:
    """What `assemble` loads a model by: with what is encoded kept and the encoders dropped, or neither."""

    def load(
        spec: Spec,
        adapter: PipelineAdapter[Any],
        source: Any,
        rows: Sequence[Row],
        device: torch.device,
        display: Any,
        clock: Any,
        asking: Any = None,
        first: Any = None,
    ) -> Kept | Encoding:
        dtype = DTYPES[spec.run.precision]
        with clock("load"):
            adapter.adopt(pipeline(Path(spec.model.spec.path), device, dtype), device, dtype)
        if not cached:
            return Encoding(adapter)
        with clock("encode"), torch.no_grad():
            known = {row.prompt: adapter.encode([row]) for row in rows}
        adapter.drop_encoders()
        return Kept({prompt: {name: x.cpu() for name, x in one.items()} for prompt, one in known.items()})

    return load
