"""LoRA in the weights that it adapts, and out again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Row
from flowfactory.policy import merging
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Full, Lora
from flowfactory_plugin_wan import WanSpec
from flowfactory_plugin_wan.checkpoint import tiny_wan
from flowfactory_plugin_wan.wan import Wan
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn


class Net(nn.Module):
    """Every kind of layer that LoRA adapts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.conv, self.out = nn.Embedding(5, 4), nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 6)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        made: Tensor = self.out(self.conv(x).mean((2, 3)) + self.words(words))
        return made


X, WORDS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 3])
LORA = Lora(rank=2, alpha=3.0)


def made(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Weights]:
    net = Net().to(dtype)
    weights = Weights({"net": net}, LORA, ["words", "conv", "out"], ["old"], 0)
    for number, parameter in enumerate(weights.parameters.values()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 4
    return net, weights


def bits(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_merged_answers_are_within_rounding_and_weights_come_back(dtype: torch.dtype, bound: float) -> None:
    net, weights = made(dtype)
    before, x = bits(net), X.to(dtype)
    apart = net(x, WORDS)
    with weights.using("reference"):
        base = net(x, WORDS)
    with weights.merged():
        assert not torch.equal(net.out.base_layer.weight, before["out.base_layer.weight"])  # type: ignore[union-attr,arg-type]
        together = net(x, WORDS)
    assert (together - apart).abs().max() <= bound * apart.abs().max()
    assert (apart - base).abs().max() > 10 * bound
    assert torch.equal(net(x, WORDS), apart)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in weights.parameters.values())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_both_experts_of_wan_are_merged_within_rounding(tmp_path: Path, dtype: torch.dtype, bound: float) -> None:
    tiny_wan(experts=2).save_pretrained(tmp_path)
    adapter, size = Wan(WanSpec(path=str(tmp_path))), Size(32, 32, 5)
    adapter.load(torch.device("cpu"), dtype)
    networks = adapter.networks()
    weights = Weights(networks, LORA, adapter.lora_targets(), [], 0)
    for number, parameter in enumerate(weights.parameters.values()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 4
    before = {name: bits(network) for name, network in networks.items()}
    conditions = adapter.encode([Row("a cat"), Row("a dog")])
    x = torch.randn(2, *adapter.latent_shape(size), generator=torch.Generator().manual_seed(0)).to(dtype)

    def velocity() -> Tensor:
        """Of two samples, each of which is another expert's."""
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return adapter.velocity(x, torch.tensor([0.99, 0.1]), conditions, 1.0, size).float()

    apart = velocity()
    with weights.using("reference"):
        base = velocity()
    with weights.merged():
        merged = velocity()
    for one, other, without in zip(merged, apart, base, strict=True):
        assert (one - other).abs().max() <= bound * other.abs().max()
        assert (other - without).abs().max() > 10 * bound
    assert len(networks) == 2
    for name, network in networks.items():
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in network.state_dict().items())
    assert torch.equal(velocity(), apart)


@torch.no_grad()
def test_the_set_in_use_is_merged() -> None:
    net, weights = made()
    with weights.using("old"), weights.merged():
        old = net(X, WORDS)
    with weights.using("old"):
        torch.testing.assert_close(old, net(X, WORDS), atol=1e-5, rtol=0)
    with weights.merged():
        assert not torch.allclose(old, net(X, WORDS), atol=1e-2)


def test_weights_come_back_after_an_error_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    net, weights = made()
    before = bits(net)
    with pytest.raises(KeyboardInterrupt), weights.merged():
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    adding, left = merging._sum, [1, 1]

    def failing(layer: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
        if not left:
            raise torch.OutOfMemoryError
        left.pop()
        return adding(layer, adapter, weight)

    monkeypatch.setattr(merging, "_sum", failing)
    with pytest.raises(torch.OutOfMemoryError), weights.merged():
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(layer.disable_adapters for layer in net.modules() if isinstance(layer, LoraLayer))


def test_no_other_set_is_used_meanwhile() -> None:
    _, weights = made()
    with weights.merged(), pytest.raises(RuntimeError, match="merged"), weights.using("reference"):
        pass
    with weights.using("reference"):
        pass


@torch.no_grad()
def test_without_lora_nothing_is_merged() -> None:
    net = Net()
    weights = Weights({"net": net}, Full(), [], [], 0)
    before = net(X, WORDS)
    with weights.merged():
        assert torch.equal(net(X, WORDS), before)


def test_layers_that_cannot_be_added_to_are_refused_by_name() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.warns(UserWarning, match="groups"):
        Weights({"net": net}, LORA, ["0"], [], 0)
    with pytest.raises(ValueError, match=r"merged: `0` of `net`, a Conv2d, has groups"):
        merging.check({"net": net})
    merging.check({"net": made()[0]})
