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
from flowfactory.processes import sharding
from flowfactory.spec.tables import Full, Lora

LORA_NAME = "default"


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
