"""What a run's weights can be written as for diffusers, and how each is read back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from flowfactory.contracts.types import Conditions
from flowfactory.export.kohya import to_kohya
from flowfactory.models import tap
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.weights import LORA_NAME, Weights, lora_config
from flowfactory.processes.distributed import DTYPES
from flowfactory.spec.tables import Lora, Spec

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder."""


@attrs.frozen(eq=False)
class Trained:
    """A pipeline with trained weights in it, and one row's conditions `(1, …)` to ask it for velocities with.

    targets: the model's own choice of modules for LoRA. dtypes: of its weights, as they are in the base model.
    """

    spec: Spec
    adapter: PipelineAdapter[Any]
    weights: Weights
    targets: Sequence[str]
    dtypes: Mapping[str, torch.dtype]
    encoded: Conditions

    @property
    def lora(self) -> Lora:
        """How it was tuned.

        Raises:
            ValueError: by full fine-tuning.
        """
        if not isinstance(self.spec.tuning, Lora):
            raise ValueError("all its weights were trained, so there is no LoRA")
        return self.spec.tuning

    def lora_of(self, network: str) -> dict[str, Tensor]:
        """The adapters of a network: `<module>.lora_A.weight` `(r, in)` and `<module>.lora_B.weight` `(out, r)`."""
        return {
            key.removeprefix(f"{network}.").replace(f".{LORA_NAME}.", "."): tensor.cpu().contiguous()
            for key, tensor in self.weights.tensors("current").items()
            if key.startswith(f"{network}.")
        }

    def round(self) -> None:
        """Put trained weights into the precision they have for whoever loads them."""
        for name, parameter in self.weights.parameters.items():
            parameter.data = parameter.data.to(self.dtypes.get(name, DTYPES[self.spec.run.precision]))


class Form(ABC):
    """One way to write trained weights."""

    @abstractmethod
    def write(self, trained: Trained, folder: Path) -> None:
        """Write into an existing folder; `trained` may be changed, but not in what it computes.

        Raises:
            ValueError: the model cannot be written so.
        """

    @abstractmethod
    def read(self, spec: Spec, folder: Path, adapter: type[PipelineAdapter[Any]], encoded: Conditions) -> Any:
        """An adapter, loaded for `encoded`, whose pipeline has what was written."""

    @abstractmethod
    def python(self, trained: Trained) -> str:
        """Python that loads it, run in its folder."""


class LoraFolder(Form):
    """`pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(folder)` loads.

    Where a pipeline has several networks, the others' are in subfolders of their names.
    """

    def write(self, trained: Trained, folder: Path) -> None:
        pipe = trained.adapter.pipe
        if not isinstance(pipe, LoraBaseMixin):
            raise ValueError(f"{type(pipe).__name__} loads no LoRA; write the merged weights")
        for name in trained.adapter.networks():
            subfolder, _ = _place(pipe, name)
            (folder / subfolder).mkdir(exist_ok=True)
            self.write_network(trained, name, folder / subfolder)

    def write_network(self, trained: Trained, name: str, folder: Path) -> None:
        """Write one network's adapters."""
        pipe: Any = trained.adapter.pipe
        config = lora_config(trained.lora, trained.targets).to_dict()
        main = pipe.transformer_name
        layers, metadata = f"{main}_lora_layers", f"{main}_lora_adapter_metadata"
        pipe.save_lora_weights(folder, **{layers: trained.lora_of(name), metadata: config})

    def read(self, spec: Spec, folder: Path, adapter: type[PipelineAdapter[Any]], encoded: Conditions) -> Any:
        made = adapter(spec.model.spec)
        made.load(device(), DTYPES[spec.run.precision], encoded)
        for name in made.networks():
            subfolder, options = _place(made.pipe, name)
            made.pipe.load_lora_weights(folder / subfolder, **options)
        return made

    def python(self, trained: Trained) -> str:
        pipe, spec = trained.adapter.pipe, trained.spec
        lines = [_load(pipe, spec, repr(str(spec.model.spec.path)), spec.model.spec.revision)]
        for name in trained.adapter.networks():
            subfolder, options = _place(pipe, name)
            said = [repr(subfolder), *(f"{key}={value!r}" for key, value in options.items())]
            lines.append(f"pipe.load_lora_weights({', '.join(said)})")
        return "\n".join(lines)


class KohyaFolder(LoraFolder):
    """The same file in kohya's key layout (see `kohya`), which ComfyUI loads as well."""

    def write_network(self, trained: Trained, name: str, folder: Path) -> None:
        network = trained.adapter.networks()[name]
        save_file(to_kohya(network, trained.lora_of(name), trained.lora.alpha), folder / LORA_FILE)


class Whole(Form):
    """The whole pipeline, as `save_pretrained` writes it; LoRA is merged into the weights."""

    def write(self, trained: Trained, folder: Path) -> None:
        spec = trained.spec
        networks = trained.adapter.networks()
        for network in networks.values():
            merge(network)
        pipe = tap.read(spec.model.spec.path, spec.model.spec.revision, DTYPES[spec.run.precision])
        pipe.register_modules(**networks)
        pipe.save_pretrained(folder)

    def read(self, spec: Spec, folder: Path, adapter: type[PipelineAdapter[Any]], encoded: Conditions) -> Any:
        made = adapter(attrs.evolve(spec.model.spec, path=str(folder), revision=None))
        made.load(device(), DTYPES[spec.run.precision], encoded)
        return made

    def python(self, trained: Trained) -> str:
        return _load(trained.adapter.pipe, trained.spec, '"."', None)


FORMS: Mapping[str, Form] = {"lora": LoraFolder(), "kohya": KohyaFolder(), "merged": Whole()}


def device() -> torch.device:
    """Where exports are computed."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def merge(network: nn.Module) -> None:
    """Add a network's LoRA to its weights and take the adapters out."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            network.set_submodule(name, layer.get_base_layer())


def _place(pipe: Any, network: str) -> tuple[str, dict[str, Any]]:
    """The subfolder of a network's LoRA, and what `load_lora_weights` must be told unless it is the first."""
    # Not by its argument `subfolder`: in a local folder diffusers prefers the file above.
    return (".", {}) if network == pipe.transformer_name else (network, {f"load_into_{network}": True})


def _load(pipe: Any, spec: Spec, path: str, revision: str | None) -> str:
    cls, dtype = type(pipe).__name__, DTYPES[spec.run.precision]
    pinned = f", revision={revision!r}" if revision else ""
    head = f"import torch\nfrom diffusers import {cls}\n"
    return f"{head}\npipe = {cls}.from_pretrained({path}{pinned}, dtype={dtype})"
