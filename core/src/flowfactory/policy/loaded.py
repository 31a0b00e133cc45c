"""The adapters of peft in a network: ours, and weight sets that were read from elsewhere and never move, as teachers.

Such sets are kept as the networks' own weights are, not in float32. Beside trained LoRA, a set's LoRA is a further
adapter, switched on in the place of ours. Whole weights, and every set beside full fine-tuning, change places with the
networks' own while they are used.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import attrs
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flowfactory.contracts.seeds import Draws, Key
from flowfactory.policy.loras import Given, LowRank, merged
from flowfactory.processes import sharding

LORA_NAME = "default"
"""Of the adapter that is trained."""


@attrs.frozen(eq=False)
class Frozen:
    """A set that never moves.

    adapter: the one to compute with beside trained LoRA, `None` for no adapter. tensors: what a parameter is meanwhile.
    """

    adapter: str | None
    tensors: Sequence[tuple[nn.Parameter, Tensor]]

    @contextmanager
    def used(self, layers: Sequence[BaseTunerLayer]) -> Iterator[None]:
        """Compute with it."""
        with switched(layers, self.adapter), _exchanged(self.tensors):
            yield


@torch.no_grad()
def kept(networks: Mapping[str, nn.Module], others: Mapping[str, Given], apart: bool) -> dict[str, Given]:
    """The sets in the networks' own format, before any weight moves.

    Args:
        apart: whether the networks' weights will move: then LoRA is added to a copy of them, which such sets share.
    """
    named = {f"{n}.{path}": p.detach() for n, network in networks.items() for path, p in network.named_parameters()}
    merging = apart and any(given.lora for given in others.values())
    base = {path: parameter.clone() for path, parameter in named.items()} if merging else {}
    made = {}
    for name, given in others.items():
        whole = {path: tensor.to(named[path].dtype) for path, tensor in given.whole.items()}
        if apart and given.lora:
            layers = [(network, module, lora) for network, lora in given.lora.items() for module in lora.factors]
            paths = {f"{network}.{module}.weight": (lora, module) for network, module, lora in layers}
            whole = base | {path: merged(base[path], *of).to(base[path].dtype) for path, of in paths.items()}
        made[name] = Given(given.title, {} if apart else given.lora, whole)
    return made


def config(lora: LowRank) -> LoraConfig:
    """What peft is told of LoRA that was read: the modules by their whole names, ranks and alphas of each."""
    ranks, alphas = {module: lora.rank(module) for module in lora.factors}, lora.alphas
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    return LoraConfig(
        r=int(rank),
        lora_alpha=alpha,
        target_modules=sorted(lora.factors),
        rank_pattern={f"^{re.escape(m)}": r for m, r in ranks.items() if r != rank},
        alpha_pattern={f"^{re.escape(m)}": a for m, a in alphas.items() if a != alpha},
        init_lora_weights="gaussian",
    )


def draw(network: nn.Module, config: LoraConfig, key: Key) -> None:
    """Put LoRA into a network. As peft's "gaussian" has it, the first matrix is drawn with deviation `1 / rank`."""
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, network, adapter_name=LORA_NAME)
    for path, parameter in network.named_parameters():
        if f".lora_A.{LORA_NAME}." in path:
            drawn = Draws([(*key, path)]).normal(*parameter.shape)[0] / config.r
            parameter.data.copy_(drawn)


def place(network: nn.Module) -> None:
    """Put LoRA where the network is: peft has put it beside the weights it adapts, which may wait elsewhere."""
    device = next(network.parameters()).device
    for path, parameter in network.named_parameters():
        if ".lora_" in path and parameter.device != device:
            parameter.data = parameter.data.to(device)


def leave_to_autocast(network: nn.Module) -> None:
    """Have LoRA take what it adapts as it is: peft would take it to float32, from which autocast only takes it back."""
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False


def inject(network: nn.Module, name: str, others: Mapping[str, Given]) -> None:
    """Put the LoRA of sets into a network as further adapters, frozen and in its own format."""
    for title, given in others.items():
        if given.lora:
            base = (p for path, p in network.named_parameters() if ".lora_" not in path)
            own = next(p.dtype for p in base if p.is_floating_point())
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
                inject_adapter_in_model(config(given.lora[name]), network, adapter_name=title)
            fill(network, name, given, title, own)
    if others:
        for layer in network.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter(LORA_NAME)


@torch.no_grad()
def fill(network: nn.Module, name: str, given: Given, adapter: str, dtype: torch.dtype = torch.float32) -> None:
    """Give a network's adapter the values that were read, in `dtype`."""
    for module, factors in given.lora[name].factors.items():
        for side, factor in zip(("lora_A", "lora_B"), factors, strict=True):
            parameter = network.get_parameter(f"{module}.{side}.{adapter}.weight")
            parameter.data = factor.to(parameter.device, dtype)


def frozen(networks: Mapping[str, nn.Module], others: Mapping[str, Given]) -> dict[str, Frozen]:
    """The sets, once the networks are as they are computed with."""
    parameters = {
        f"{name}.{path.replace('.base_layer.', '.')}": parameter
        for name, network in networks.items()
        for path, parameter in network.named_parameters()
        if ".lora_" not in path
    }
    placed: dict[int, Tensor] = {}  # by identity: sets share what they do not adapt
    made = {}
    for name, given in others.items():
        for path, tensor in given.whole.items():
            if id(tensor) not in placed:
                placed[id(tensor)] = sharding.like(tensor, parameters[path])
        tensors = [(parameters[path], placed[id(tensor)]) for path, tensor in given.whole.items()]
        made[name] = Frozen(name if given.lora else None, tensors)
    return made


@contextmanager
def switched(layers: Sequence[BaseTunerLayer], adapter: str | None) -> Iterator[None]:
    """Compute with another adapter, or with none."""
    before = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    for layer in layers:
        layer.enable_adapters(adapter is not None)
        if adapter is not None:
            layer.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        for layer, active, disabled in before:
            layer.enable_adapters(True)
            if adapter is not None or LORA_NAME not in active:  # what is trained alone is trained again by now
                layer.set_adapter(active, inference_mode=LORA_NAME not in active)
            if disabled:
                layer.enable_adapters(False)


@contextmanager
def _exchanged(tensors: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    with ExitStack() as undone:
        for parameter, tensor in tensors:
            undone.callback(exchange, parameter, exchange(parameter, tensor))
        yield


@torch.no_grad()
def exchange(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """Give a parameter the values of a tensor, which stays as it is; returns its own.

    FSDP2 keeps a buffer of its own behind a divided parameter, so there values are copied.
    """
    if isinstance(parameter, DTensor):
        own = parameter.detach().clone()
        parameter.copy_(tensor)
        return own
    own, parameter.data = parameter.data, tensor
    return own
