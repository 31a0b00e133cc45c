"""What a run's weights can be written as for diffusers, and how each is read back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from flowfactory.contracts.types import Conditions
from flowfactory.export.words import MODULES, described_as, loading
from flowfactory.models import reading
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.kohya import A, from_kohya, to_kohya, unread
from flowfactory.policy.loaded import LORA_NAME
from flowfactory.policy.loras import takes_lora
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import DTYPES, numbered
from flowfactory.spec.tables import Spec

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder."""


@attrs.frozen(eq=False)
class Trained:
    """A pipeline with trained weights in it, and one row's conditions `(1, …)` to ask it for velocities with.

    dtypes: of its weights, as they are in the base model. stored: what LoRA is written in.
    """

    spec: Spec
    adapter: PipelineAdapter[Any]
    weights: Weights
    dtypes: Mapping[str, torch.dtype]
    encoded: Conditions
    stored: torch.dtype = torch.float32

    def lora_of(self, network: str) -> dict[str, Tensor]:
        """The adapters of a network: `<module>.lora_A.weight` `(r, in)` and `<module>.lora_B.weight` `(out, r)`."""
        return {
            key.removeprefix(f"{network}.").replace(f".{LORA_NAME}.", "."): tensor.to("cpu", self.stored).contiguous()
            for key, tensor in self.weights.tensors("current").items()
            if key.startswith(f"{network}.")
        }

    def fold(self) -> None:
        """Multiply the first factors of LoRA by their scale, alpha / rank, which from then on is 1."""
        for network in self.adapter.networks().values():
            for layer in network.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.lora_A[LORA_NAME].weight.data *= layer.scaling[LORA_NAME]
                    layer.scaling[LORA_NAME] = 1.0

    def round(self) -> None:
        """Put trained weights into the precision they have for whoever loads them."""
        for name, parameter in self.weights.parameters.items():
            written = parameter.data if name in self.dtypes else parameter.data.to(self.stored)
            parameter.data = written.to(self.dtypes.get(name, DTYPES[self.spec.run.precision]))


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
    def python(self, trained: Trained, base: str) -> str:
        """Python that loads it as `pipe`, run in its folder. base: where the base model is, seen from there."""

    def note(self, trained: Trained) -> str:
        """What else there is to say about loading it."""
        return ""


class LoraFolder(Form):
    """`pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(folder)` loads.

    Where a pipeline has several networks, the others' are in subfolders of their names.
    """

    def write(self, trained: Trained, folder: Path) -> None:
        pipe = trained.adapter.pipe
        if not takes_lora(pipe):
            raise ValueError(f"{type(pipe).__name__} loads no LoRA; write the merged weights")
        if not trained.weights.configs:
            raise ValueError("all its weights were trained, so there is no LoRA")
        for name in trained.adapter.networks():
            subfolder, _ = _place(pipe, name)
            (folder / subfolder).mkdir(exist_ok=True)
            self.write_network(trained, name, folder / subfolder)

    def write_network(self, trained: Trained, name: str, folder: Path) -> None:
        """Write one network's adapters."""
        pipe: Any = trained.adapter.pipe
        config = trained.weights.configs[name].to_dict()
        config |= {key: sorted(value) for key, value in config.items() if key == "target_modules" and value}
        main = pipe.transformer_name
        layers, metadata = f"{main}_lora_layers", f"{main}_lora_adapter_metadata"
        pipe.save_lora_weights(folder, **{layers: trained.lora_of(name), metadata: config})
        with safe_open(folder / LORA_FILE, "pt") as file:
            own = dict(file.metadata())
        _save(load_file(folder / LORA_FILE), folder / LORA_FILE, own | described(trained, name))

    def read(self, spec: Spec, folder: Path, adapter: type[PipelineAdapter[Any]], encoded: Conditions) -> Any:
        made = adapter(spec.model.spec)
        made.load(device(), DTYPES[spec.run.precision], encoded)
        for name in made.networks():
            self.read_network(spec, made, name, folder)
        return made

    def read_network(self, spec: Spec, adapter: PipelineAdapter[Any], name: str, folder: Path) -> None:
        """Load one network's adapters into an adapter's pipeline."""
        pipe: Any = adapter.pipe
        subfolder, options = _place(pipe, name)
        pipe.load_lora_weights(folder / subfolder, weight_name=self.file(spec), **options)

    def file(self, spec: Spec) -> str:
        """The name of the file."""
        return LORA_FILE

    def python(self, trained: Trained, base: str) -> str:
        pipe, spec = trained.adapter.pipe, trained.spec
        lines = [loading(trained.adapter, spec, base)]
        for name in trained.adapter.networks():
            subfolder, options = _place(pipe, name)
            said = [repr(subfolder)]
            said += [f"weight_name={self.file(spec)!r}"] if self.file(spec) != LORA_FILE else []
            said += [f"{key}={value!r}" for key, value in options.items()]
            lines.append(f"pipe.load_lora_weights({', '.join(said)})")
        return "\n".join(lines)


class KohyaFolder(LoraFolder):
    """A file named as the run, in kohya's key layout (see `kohya`), which ComfyUI loads as well.

    LoRA's scale is in its first factor, as diffusers puts it there on loading, so that both round the same numbers.
    """

    def write(self, trained: Trained, folder: Path) -> None:
        trained.fold()
        super().write(trained, folder)

    def write_network(self, trained: Trained, name: str, folder: Path) -> None:
        tensors = to_kohya(trained.adapter.networks()[name], trained.lora_of(name))
        _save(tensors, folder / self.file(trained.spec), described(trained, name, folded=True))

    def read_network(self, spec: Spec, adapter: PipelineAdapter[Any], name: str, folder: Path) -> None:
        pipe: Any = adapter.pipe
        subfolder, _ = _place(pipe, name)
        network: Any = adapter.networks()[name]
        file = folder / subfolder / self.file(spec)
        with safe_open(file, "pt") as opened:
            adapted = set(json.loads(opened.metadata()[MODULES]))
        if unread(network, adapted):
            network.load_lora_adapter(from_kohya(network, adapted, load_file(file)), prefix=None)
        else:
            super().read_network(spec, adapter, name, folder)

    def file(self, spec: Spec) -> str:
        return f"{spec.run.name}.safetensors"

    def python(self, trained: Trained, base: str) -> str:
        return "" if self._unread(trained) else super().python(trained, base)

    def note(self, trained: Trained) -> str:
        text = f"For ComfyUI, put `{self.file(trained.spec)}` into its folder `models/loras`."
        if why := self._unread(trained):
            text += f" In Python, {why}; `flowfactory export --form lora` writes what it reads."
        return text

    def _unread(self, trained: Trained) -> str:
        networks = trained.adapter.networks().items()
        return next((why for name, network in networks if (why := unread(network, modules(trained, name)))), "")


class Whole(Form):
    """The whole pipeline, as `save_pretrained` writes it; LoRA is merged into the weights."""

    def write(self, trained: Trained, folder: Path) -> None:
        spec = trained.spec
        networks: dict[str, Any] = dict(trained.adapter.networks())
        for network in networks.values():
            if not all(parameter.is_floating_point() for parameter in network.parameters()):
                raise ValueError("its base is quantized, and merging would round it again; write the form lora")
            merge(network)
        pipe = reading.read(spec.model.spec, DTYPES[spec.run.precision])
        pipe.register_modules(**networks)
        pipe.save_pretrained(folder)
        for file in folder.rglob("*.json"):
            forget_place(file)

    def read(self, spec: Spec, folder: Path, adapter: type[PipelineAdapter[Any]], encoded: Conditions) -> Any:
        own = attrs.evolve(spec.model.spec, path=str(folder), revision=None, variant=None, single_file=None)
        made = adapter(own)
        made.load(device(), DTYPES[spec.run.precision], encoded)
        return made

    def python(self, trained: Trained, base: str) -> str:
        alone = attrs.evolve(trained.spec.model.spec, revision=None, variant=None, single_file=None)
        model = attrs.evolve(trained.spec.model, spec=alone)
        return loading(trained.adapter, attrs.evolve(trained.spec, model=model), ".")


FORMS: Mapping[str, Form] = {"lora": LoraFolder(), "kohya": KohyaFolder(), "merged": Whole()}


def device() -> torch.device:
    """Where exports are computed."""
    return numbered("cuda" if torch.cuda.is_available() else "cpu")


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


def modules(trained: Trained, network: str) -> set[str]:
    """The modules of a network that have LoRA."""
    return {key.removesuffix(A) for key in trained.lora_of(network) if key.endswith(A)}


def described(trained: Trained, network: str, folded: bool = False) -> dict[str, str]:
    """The metadata of a LoRA's file, by the names that ComfyUI, hubs and kohya's programs show.

    Args:
        folded: whether its scale is in its first factor.
    """
    config = trained.weights.configs[network]
    alpha = config.r if folded else config.lora_alpha
    own = described_as(trained.spec, type(trained.adapter.networks()[network]).__name__, config.r, alpha)
    return own | {MODULES: json.dumps(sorted(modules(trained, network)))}


def _save(tensors: dict[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a file that is the same for the same content: by itself the library puts metadata in any order."""
    data = save(tensors, dict(metadata))
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    text = json.dumps(header | {"__metadata__": dict(sorted(metadata.items()))}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])


def forget_place(file: Path) -> None:
    """Take out of a config where on this machine it was read from."""
    text = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(text, dict) and Path(str(text.get("_name_or_path", ""))).is_absolute():
        del text["_name_or_path"]
        file.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
