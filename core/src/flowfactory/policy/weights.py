"""The trained weights and the named sets they are exchanged with.

Trained weights, their averages and old policies are float32. Computing with another set exchanges tensors, it copies
none; of weights divided among the processes (`sharding`) it exchanges the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from flowfactory.contracts.seeds import Draws, Key
from flowfactory.errors import did_you_mean, listed
from flowfactory.processes import sharding
from flowfactory.spec.tables import Full, Lora

LORA_NAME = "default"
LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What peft adapts; its quantized layers are among them."""


def masters(module: nn.Module) -> None:
    """Make trainable parameters float32."""
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


class Weights:
    """The trainable parameters of some networks, and further float32 sets of the same shapes.

    Args:
        networks: trainable networks by name; their parameters are made trainable or frozen here, in place.
        tuning: LoRA, injected by peft, or full fine-tuning.
        targets: module name endings LoRA adapts.
        sets: names of sets to keep besides "current"; each starts as a copy of the current weights.
        seed: of the LoRA initialisation, equal on all processes.
        settle: what becomes of each network once it is known what is trained; it has to make that float32.

    Raises:
        ValueError: a target names nothing that LoRA can adapt.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        tuning: Lora | Full,
        targets: Sequence[str],
        sets: Sequence[str],
        seed: int,
        settle: Callable[[nn.Module], None] = masters,
    ) -> None:
        self.networks = networks
        self._lora_layers: list[BaseTunerLayer] = []
        if isinstance(tuning, Lora):
            check_targets(networks, tuning, targets)
        for name, network in networks.items():
            network.requires_grad_(isinstance(tuning, Full))
            if isinstance(tuning, Lora):
                _inject(network, tuning, targets, (seed, "lora", name))
                self._lora_layers += [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
            settle(network)
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{path}": parameter
            for name, network in networks.items()
            for path, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        copied = set(sets) - ({"reference"} if self._lora_layers else set())
        self.sets: dict[str, list[Tensor]] = {
            name: [p.detach().clone() for p in self.parameters.values()] for name in sorted(copied)
        }
        self._exchanges = 0

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Compute with another set: "current", "reference" (LoRA: adapters switched off) or one of `sets`.

        Raises:
            KeyError: there is no such set.
        """
        if name == "current":
            yield
        elif name == "reference" and self._lora_layers:
            with self._without_lora():
                yield
        else:
            if name not in self.sets:
                raise KeyError(f"no weight set {name!r}; there are {', '.join(['current', *self.sets])}")
            self._exchange(name)
            self._exchanges += 1
            try:
                yield
            finally:
                self._exchange(name)
                self._exchanges -= 1

    @torch.no_grad()
    def move(self, name: str, decay: float) -> None:
        """`set <- decay * set + (1 - decay) * current`."""
        if self._exchanges:
            raise RuntimeError(f"weight set {name!r} cannot move while another set is in use")
        torch._foreach_lerp_(self.sets[name], [p.data for p in self.parameters.values()], 1.0 - decay)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A set, by parameter name, as it lies in memory: of divided weights this process's share."""
        values = [p.data for p in self.parameters.values()] if name == "current" else self.sets[name]
        return dict(zip(self.parameters, values, strict=True))

    def finite(self) -> bool:
        """Whether every current weight that this process holds is a finite number."""
        held = [sharding.own(p.detach()) for p in self.parameters.values()]
        return bool(torch.stack([tensor.isfinite().all() for tensor in held]).all())

    @torch.no_grad()
    def restore(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite a set with whole tensors, such as `sharding.gathered` made of it."""
        for key, target in self.tensors(name).items():
            target.copy_(sharding.like(tensors[key], target))

    def _exchange(self, name: str) -> None:
        stored = self.sets[name]
        for i, parameter in enumerate(self.parameters.values()):
            stored[i] = sharding.exchange(parameter, stored[i])

    @contextmanager
    def _without_lora(self) -> Iterator[None]:
        for layer in self._lora_layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._lora_layers:
                layer.enable_adapters(True)


def check_targets(networks: Mapping[str, nn.Module], lora: Lora, targets: Sequence[str]) -> None:
    """Make sure that LoRA finds, in every network, what it is to adapt.

    Args:
        targets: the model's own, for a spec without any; one network of several may lack some of these.

    Raises:
        ValueError: a target of the spec names nothing in a network, or what is no layer; or nothing is left to adapt.
    """
    for name, network in networks.items():
        kinds = dict(network.named_modules())
        found = {target: _named(kinds, target) for target in lora.targets or targets}
        for target, modules in found.items():
            if lora.targets and not modules:
                layers = {path.rpartition(".")[2] for path, module in kinds.items() if isinstance(module, LAYERS)}
                near = did_you_mean(target, layers) or f"its layers are {listed(sorted(layers))}"
                raise ValueError(f"[lora] targets: `{target}` names nothing in `{name}`; {near}")
            for module in modules:
                if not isinstance(kinds[module], LAYERS):
                    what = f"`{target}` names `{module}` in `{name}`, a {type(kinds[module]).__name__}"
                    raise ValueError(f"[lora] targets: {what}; name the layers in it instead, such as `to_q`")
        if not any(found.values()):
            raise ValueError(f"[lora] targets: `{name}` has none of {listed(found)}; name layers of it")


def _named(modules: Mapping[str, nn.Module], target: str) -> list[str]:
    """The modules that peft takes for a target: it is their name, or the end of it from a dot on."""
    return [path for path in modules if path == target or path.endswith(f".{target}")]


def lora_config(lora: Lora, targets: Sequence[str]) -> LoraConfig:
    """What peft is told; `targets` are the model's own, for a spec without any."""
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets or targets), init_lora_weights="gaussian"
    )


def _inject(network: nn.Module, lora: Lora, targets: Sequence[str], key: Key) -> None:
    """Put LoRA into a network. As peft's "gaussian" has it, the first matrix is drawn with deviation `1 / rank`."""
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(lora_config(lora, targets), network, adapter_name=LORA_NAME)
    for path, parameter in network.named_parameters():
        if f".lora_A.{LORA_NAME}." in path:
            drawn = Draws([(*key, path)]).normal(*parameter.shape)[0] / lora.rank
            parameter.data.copy_(drawn)
