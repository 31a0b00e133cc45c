"""HPSv2.1 (Wu et al. 2023, arXiv:2306.09341) as a reward: CLIP-H trained on people's choices between images.

s(p, x) = scale cos(text(p), image(x))
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flowfactory import Shared, to_bytes
from flowfactory_plugin_clip.backbone import Backbone
from flowfactory_plugin_clip.clip import Similarity
from flowfactory_plugin_clip.tiny import tiny_clip
from huggingface_hub import hf_hub_download
from torch import Tensor
from torch.nn.functional import interpolate, pad
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from flowfactory_plugin_hps import HPSSpec
from flowfactory_plugin_hps.layout import from_transformers, to_transformers


class Whole(Backbone):
    """A CLIP that sees whole images: shrunk to their longer side and padded with black, as HPSv2 was trained."""

    antialias = True

    def images(self, frames: Sequence[Tensor]) -> Tensor:
        return self.tensors([to_bytes(frame).float() / 255 for frame in frames])

    def tensors(self, frames: Sequence[Tensor]) -> Tensor:
        own = self.processor.image_processor
        x = torch.stack([self._square(frame.to(self.model.device).float()) for frame in frames])
        mean, std = (torch.tensor(values).view(3, 1, 1).to(x) for values in (own.image_mean, own.image_std))
        return self.seen((x - mean) / std)

    def _square(self, frame: Tensor) -> Tensor:
        side: int = self.model.config.vision_config.image_size
        longest = max(frame.shape[-2:])
        height, width = (round(length * side / longest) for length in frame.shape[-2:])
        small = interpolate(frame[None], (height, width), mode="bicubic", antialias=self.antialias)[0]
        left, top = (side - width) // 2, (side - height) // 2
        return pad(small, (left, side - width - left, top, side - height - top))


class HPS(Similarity):
    """The authors' score of each sample."""

    spec: HPSSpec

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        own = self.spec
        files = (own.weights, own.file, own.revision, own.processor, own.processor_revision, own.antialias)
        self.backbone = shared(f"hps:{files}", lambda: read(own, device, dtype))

    @classmethod
    def tiny(cls, folder: Path) -> Mapping[str, Any]:
        path = tiny_clip(folder)
        tensors = from_transformers(CLIPModel.from_pretrained(path).state_dict())
        torch.save({"epoch": 0, "state_dict": tensors}, folder / "hps.pt")
        return {"weights": str(folder), "file": "hps.pt", "processor": str(path)}


def read(spec: HPSSpec, device: torch.device, dtype: torch.dtype) -> Whole:
    """The network that a spec names. Nothing but tensors is unpickled.

    Raises:
        OSError: a file is not there, or cannot be reached. ValueError: it holds something else.
    """
    path = Path(spec.weights)
    if path.is_dir():
        path /= spec.file
    elif not path.is_file():
        path = Path(hf_hub_download(spec.weights, spec.file, revision=spec.revision))
    try:
        found = torch.load(path, "cpu", weights_only=True, mmap=True)["state_dict"]
        tensors = to_transformers(found)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise ValueError(f"{path} is no checkpoint of HPSv2: {error}") from error
    config = CLIPConfig.from_pretrained(spec.processor, revision=spec.processor_revision)
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in CLIPModel(config).named_parameters()}
    off = [name for name in {*expected, *tensors} if name not in tensors or expected.get(name) != tensors[name].shape]
    if off:
        what = f"{path} is not of the network that {spec.processor} describes"
        raise ValueError(f"{what}: {len(off)} tensors differ, `{min(off)}` first")
    model = CLIPModel.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    made = Whole(
        model.to(device).eval().requires_grad_(False),
        CLIPProcessor.from_pretrained(spec.processor, revision=spec.processor_revision),
    )
    made.antialias = spec.antialias
    return made
