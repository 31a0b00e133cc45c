"""The trained weights and the named sets they are exchanged with.

Trained weights, their averages and old policies are float32. Computing with another set exchanges tensors, it copies
none; of weights divided among the processes (`sharding`) it exchanges the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from flowfactory.errors import did_you_mean, listed
from flowfactory.policy import loaded, merging
from flowfactory.policy.loaded import LORA_NAME
from flowfactory.policy.loras import Given, LowRank, merged
from flowfactory.processes import sharding
from flowfactory.spec.tables import Full, Lora

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
        start: what to begin with instead of fresh LoRA, or of the networks as they are.
        others: what never moves, by name of the set; kept as the networks' own weights are.

    Raises:
        ValueError: a target names nothing that LoRA can adapt; or what was given does not fit, by name.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        tuning: Lora | Full,
        targets: Sequence[str],
        sets: Sequence[str],
        seed: int,
        settle: Callable[[nn.Module], None] = masters,
        start: Given | None = None,
        others: Mapping[str, Given] = MappingProxyType({}),
    ) -> None:
        self.networks, self.configs = networks, dict[str, LoraConfig]()
        self._lora_layers: list[BaseTunerLayer] = []
        check(networks, tuning, targets, start, others.values())
        if isinstance(tuning, Lora):
            given: Mapping[str, LowRank] = start.lora if start else {}
            self.configs = {name: lora_config(tuning, targets, given.get(name)) for name in networks}
        others = loaded.kept(networks, others, apart=isinstance(tuning, Full))
        for name, network in networks.items():
            network.requires_grad_(isinstance(tuning, Full))
            if isinstance(tuning, Lora):
                loaded.draw(network, self.configs[name], (seed, "lora", name))
                if start is not None:
                    loaded.fill(network, name, start, LORA_NAME)
                loaded.inject(network, name, others)
                loaded.place(network)
                self._lora_layers += [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
            settle(network)
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{path}": parameter
            for name, network in networks.items()
            for path, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        referred = {"reference"} & {*sets}
        later = referred if start is not None and tuning.reference != "base" else set()
        ahead = referred - later if isinstance(tuning, Full) else set()
        self.sets: dict[str, list[Tensor]] = {name: self._copy() for name in ahead}
        if isinstance(tuning, Full) and start is not None:
            self._overwrite(start)
        self.sets |= {name: self._copy() for name in sorted({*sets} - referred | later)}
        self._frozen = loaded.frozen(networks, others)
        self.active, self._lies = "current", {name: name for name in self.sets}
        self._exchanges, self._merged = 0, False

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Compute with another set: "current", "reference" (of LoRA without a start: adapters off), one of `sets`, or
        one that was loaded.

        Raises:
            KeyError: there is no such set.
        """
        if name == self.active:
            yield
        elif self._merged:
            raise RuntimeError(f"weight set {name!r} cannot be used while the LoRA of another is merged")
        elif name == "reference" and self._lora_layers and name not in self.sets:
            with loaded.switched(self._lora_layers, None):
                yield
        elif name in self._frozen:
            self._exchanges += 1
            try:
                with self._frozen[name].used(self._lora_layers):
                    yield
            finally:
                self._exchanges -= 1
        else:
            if name not in self._lies:
                there = ", ".join(["current", *self.sets, *self._frozen])
                raise KeyError(f"no weight set {name!r}; there are {there}")
            before, place = self.active, self._lies[name]
            self._exchange(place)
            self.active, self._lies[before] = name, place  # what was active lies there meanwhile
            self._exchanges += 1
            try:
                yield
            finally:
                self._exchange(place)
                self.active, self._lies[name] = before, place
                self._exchanges -= 1

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Compute with LoRA added to the weights it adapts, and with no other set meanwhile; see `merging.merged`."""
        self._merged = True
        try:
            with merging.merged(self._lora_layers):
                yield
        finally:
            self._merged = False

    @torch.no_grad()
    def move(self, name: str, decay: float) -> None:
        """`set <- decay * set + (1 - decay) * current`.

        Raises:
            KeyError: no set of that name can move: those that were loaded never do.
        """
        if name not in self.sets:
            raise KeyError(f"no weight set {name!r} can move; those that can are {', '.join(self.sets) or 'none'}")
        if self._exchanges:
            raise RuntimeError(f"weight set {name!r} cannot move while another set is in use")
        torch._foreach_lerp_(self.sets[name], [p.data for p in self.parameters.values()], 1.0 - decay)

    @property
    def alphas(self) -> dict[str, float]:
        """The alpha of every layer that LoRA adapts, by `network.module`."""
        return {f"{name}.{module}": alpha for name in self.configs for module, alpha in self.lora_alphas(name).items()}

    def lora_alphas(self, network: str) -> dict[str, float]:
        """The alpha of every layer of a network that LoRA adapts."""
        layers = self.networks[network].named_modules()
        return {
            path: float(layer.lora_alpha[LORA_NAME])
            for path, layer in layers
            if isinstance(layer, LoraLayer) and LORA_NAME in layer.lora_alpha
        }

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

    def _copy(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters.values()]

    @torch.no_grad()
    def _overwrite(self, start: Given) -> None:
        """Begin full fine-tuning with other weights, or with a LoRA added to them."""
        for name, tensor in start.whole.items():
            self.parameters[name].copy_(sharding.like(tensor, self.parameters[name]))
        for network, lora in start.lora.items():
            for module in lora.factors:
                parameter = self.parameters[f"{network}.{module}.weight"]
                parameter.copy_(sharding.like(merged(sharding.whole(parameter.detach()), lora, module), parameter))

    def _exchange(self, name: str) -> None:
        stored = self.sets[name]
        for i, parameter in enumerate(self.parameters.values()):
            stored[i] = sharding.exchange(parameter, stored[i])


def check(
    networks: Mapping[str, nn.Module],
    tuning: Lora | Full,
    targets: Sequence[str],
    start: Given | None = None,
    others: Iterable[Given] = (),
) -> None:
    """Make sure that networks can be tuned so, before they are changed; arguments are as those of `Weights`.

    Raises:
        ValueError: they cannot; the message names what does not fit.
    """
    if isinstance(tuning, Full):
        for given in (*others, *([start] if start else [])):
            for network, lora in given.lora.items():
                if odd := [module for module, (a, _) in lora.factors.items() if a.dim() != 2]:
                    what = f"{given.title} adapts `{odd[0]}` of `{network}`, a convolution"
                    raise ValueError(f"{what}; LoRA of those cannot be added to weights, as [full] has to")
    elif start is None:
        _check_targets(networks, tuning, targets)
    elif start.whole:
        what = f"[lora] from: {start.title} has whole weights, not LoRA"
        raise ValueError(f"{what}; make them the model's (`flowfactory export`, then [model] path), or train [full]")
    else:
        for name, own in start.lora.items():
            _refuse_contradictions(name, own, tuning, start.title)


def _check_targets(networks: Mapping[str, nn.Module], lora: Lora, targets: Sequence[str]) -> None:
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


def lora_config(lora: Lora, targets: Sequence[str], start: LowRank | None = None) -> LoraConfig:
    """What peft is told; `targets` are the model's own, for a spec without any. With a `start`, it decides all."""
    if start is None:
        wanted = list(lora.targets or targets)
        return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=wanted, init_lora_weights="gaussian")
    return loaded.config(start)


def _refuse_contradictions(network: str, given: LowRank, lora: Lora, title: str) -> None:
    """What a spec says of a LoRA beside `from` has to be what is there."""
    for module in given.factors:
        for key, written, there in (
            ("rank", lora.rank, given.rank(module)),
            ("alpha", lora.alpha, given.alphas[module]),
        ):
            if written is not None and written != there:
                what = f"[lora] {key} is {written:g}, and in {title} `{module}` of `{network}` has {there:g}"
                raise ValueError(f"{what}; leave it out, since `from` decides it")
        if lora.targets is not None and not any(f".{module}".endswith(f".{target}") for target in lora.targets):
            what = f"[lora] targets do not name `{module}` of `{network}`, which {title} adapts"
            raise ValueError(f"{what}; leave them out, since `from` decides them")
    for target in lora.targets or ():
        if not any(f".{module}".endswith(f".{target}") for module in given.factors):
            what = f"[lora] targets name `{target}`, and {title} adapts no such layer of `{network}`"
            raise ValueError(f"{what}; leave them out, since `from` decides them")
