"""Divided weights are those that are whole: run by two processes, with shapes that do not divide evenly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import bitsandbytes
import pytest
import torch
from flowfactory.models.quantized import quantize, tell_peft
from flowfactory.policy.loras import Given, LowRank
from flowfactory.policy.weights import Weights, masters
from flowfactory.processes.sharding import divide, gathered, like, whole
from flowfactory.spec.tables import Full, Lora
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

FULL, LORA = Full(), Lora(rank=3, alpha=3.0)
SETS = ("old", "reference")


class Block(nn.Module):
    """Odd shapes, one row to divide, and a layer nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.unused = nn.Linear(5, 7), nn.Linear(7, 5), nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.ones(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(torch.tanh(self.up(x))) * self.scale
        return x


class Network(nn.Module):
    """Two blocks and a layer outside of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.out = nn.ModuleList([Block(), Block()]), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.out(x)  # type: ignore[no-any-return]


def made(tuning: Full | Lora, sets: Sequence[str], settle: Callable[[nn.Module], None]) -> tuple[nn.Module, Weights]:
    """A network in bfloat16, as models are loaded, and its weights."""
    network = Network().bfloat16()
    return network, Weights({"net": network}, tuning, ["up", "down", "unused"], sets, 0, settle)


def spread(weights: Weights) -> None:
    """Give every trained weight another value; LoRA starts without effect."""
    for number, (name, value) in enumerate(weights.tensors("current").items()):
        entire = torch.randn(value.shape, generator=torch.Generator().manual_seed(number)) / 3
        weights.restore("current", {**whole_of(weights, "current"), name: entire})


def whole_of(weights: Weights, name: str) -> dict[str, Tensor]:
    return gathered(weights.tensors(name), keep=True)


def closest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def compare(rank: int, mesh: DeviceMesh, tuning: Full | Lora) -> None:
    """Everything a run does with weights, on both kinds."""
    one, plain = made(tuning, SETS, masters)
    two, divided = made(tuning, SETS, lambda network: divide(network, mesh, masters))
    assert all(isinstance(p, DTensor) for p in divided.parameters.values())
    assert sum(p.to_local().numel() for p in divided.parameters.values() if isinstance(p, DTensor)) < sum(
        p.numel() for p in plain.parameters.values()
    )
    inputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(7))

    def velocity(network: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x).float()  # type: ignore[no-any-return]

    def same() -> Tensor:
        with torch.no_grad():
            x = inputs[rank]
            assert torch.equal(velocity(two, x), velocity(one, x))
            return velocity(two, x)

    start = same()
    for weights in (plain, divided):
        spread(weights)
    changed = same()
    assert not torch.equal(start, changed)
    for name in ("old", "reference"):
        with plain.using(name), divided.using(name):
            assert torch.equal(same(), start)
        assert torch.equal(same(), changed)
    with pytest.raises(ZeroDivisionError), plain.using("old"), divided.using("old"), divided.using("reference"):
        raise ZeroDivisionError
    assert torch.equal(same(), changed)
    if isinstance(tuning, Lora):
        kept = [p.clone() for p in two.parameters()]
        with plain.merged(), divided.merged():
            merged = same()
        torch.testing.assert_close(merged, changed, rtol=0, atol=5e-2)
        assert not torch.equal(merged, changed)  # rounded otherwise
        assert all(torch.equal(whole(p), whole(own)) for p, own in zip(two.parameters(), kept, strict=True))
        assert torch.equal(same(), changed)
    for weights in (plain, divided):
        weights.move("old", 0.25)
    closest(whole_of(divided, "old"), whole_of(plain, "old"))

    optimizers = [torch.optim.AdamW(w.parameters.values(), lr=1e-2, eps=1e-4) for w in (plain, divided)]
    for _ in range(2):
        # Twice, as micro-batches do; each process has its own samples, and one has them all.
        for half in (slice(0, 2), slice(2, 4)):
            for x in inputs:
                velocity(one, x[half]).square().sum().backward()
            velocity(two, inputs[rank][half]).square().sum().backward()
        missing = {name for name, p in divided.parameters.items() if p.grad is None}
        assert missing == {name for name, p in plain.parameters.items() if p.grad is None}
        assert missing
        assert all("unused" in name for name in missing)
        norms = [whole(nn.utils.clip_grad_norm_(list(w.parameters.values()), 0.5)) for w in (plain, divided)]
        torch.testing.assert_close(norms[1], norms[0], rtol=2e-2, atol=0)  # bfloat16 gradients, added up differently
        closest_gradients(divided, plain)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        closest_steps(divided, plain)
    path, parameter = next((n, p) for n, p in divided.parameters.items() if "unused" not in n)
    moment = optimizers[1].state[parameter]["exp_avg"]
    assert moment.placements == parameter.placements
    entire = gathered({"m": moment}, keep=True)["m"]
    assert torch.equal(whole(like(entire, parameter)), entire), path
    assert gathered({"m": moment}, keep=False) == {}


def given() -> tuple[Given, Given]:
    """LoRA of two layers, and whole weights, as they are read from elsewhere."""
    random = torch.Generator().manual_seed(3)
    shapes = {"blocks.0.up": (5, 7), "blocks.1.down": (7, 5)}
    factors = {
        module: (torch.randn(2, inside, generator=random), torch.randn(outside, 2, generator=random))
        for module, (inside, outside) in shapes.items()
    }
    whole = {f"net.{name}": torch.randn(p.shape, generator=random) / 3 for name, p in Network().named_parameters()}
    return Given("lora", lora={"net": LowRank(dict.fromkeys(factors, 4.0), factors)}), Given("whole", whole=whole)


def compare_given(mesh: DeviceMesh, tuning: Full | Lora) -> None:
    """What is read from elsewhere, to begin with and as sets that never move, on both kinds."""
    lora, entire = given()
    others = {"teacher": lora, "other": entire}
    for start in (lora, entire):
        if isinstance(tuning, Lora) and start is entire:
            continue
        begun = attrs.evolve(tuning, from_="x", **({"rank": None, "alpha": None} if isinstance(tuning, Lora) else {}))
        settles = masters, lambda network: divide(network, mesh, masters)
        made = []
        for settle in settles:
            network = Network().bfloat16()
            made.append((network, Weights({"net": network}, begun, [], SETS, 0, settle, start, others)))
        (one, plain), (two, divided) = made
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(7))

        def velocity(network: nn.Module, x: Tensor = x) -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                return network(x).float()  # type: ignore[no-any-return]

        before = velocity(two)
        masters_before = whole_of(divided, "current")
        assert torch.equal(before, velocity(one))
        seen = [before]
        for name in ("teacher", "other", "reference"):
            with plain.using(name), divided.using(name):
                assert torch.equal(velocity(two), velocity(one)), name
                seen.append(velocity(two))
            assert torch.equal(velocity(two), before)
        assert torch.equal(seen[3], before)
        assert not torch.equal(seen[1], seen[2])
        assert not torch.equal(seen[2], before)
        closest(whole_of(divided, "current"), masters_before)
        assert all(torch.equal(t, masters_before[name]) for name, t in whole_of(divided, "current").items())


def closest_gradients(ours: Weights, theirs: Weights) -> None:
    for name, parameter in ours.parameters.items():
        if parameter.grad is not None:
            expected = theirs.parameters[name].grad
            assert expected is not None
            torch.testing.assert_close(whole(parameter.grad), expected, rtol=3e-2, atol=1e-3)


def closest_steps(ours: Weights, theirs: Weights) -> None:
    mine, others = (whole_of(w, "current") for w in (ours, theirs))
    for name in mine:
        torch.testing.assert_close(mine[name], others[name], rtol=0, atol=2e-3)


def compare_eight_bits(mesh: DeviceMesh) -> None:
    """A frozen base in int8: each process has half of its numbers, and the whole of a layer only while it computes."""
    networks = Network(), Network()
    for network in networks:
        quantize(network, "int8", torch.float32)
        tell_peft(network.to("cpu"), "int8")
        network.requires_grad_(False)
    two = networks[1]
    layers = [layer for layer in two.modules() if isinstance(layer, bitsandbytes.nn.Linear8bitLt)]
    shapes = [layer.weight.shape for layer in layers]
    divide(two, mesh, lambda _: None)
    for layer, shape in zip(layers, shapes, strict=True):
        assert isinstance(layer.weight, DTensor)
        assert layer.weight.dtype == torch.int8
        assert layer.weight.to_local().numel() < shape.numel()
    start, gradients = torch.randn(4, 5, generator=torch.Generator().manual_seed(7)), []
    for network in networks:
        x = start.clone().requires_grad_(True)
        y = network(x)
        if network is two:
            held = [layer.state.CB for layer in layers if layer.state.CB is not None]
            assert held
            assert all(tensor.untyped_storage().size() == 0 for tensor in held)
        y.square().sum().backward()
        gradients.append(torch.cat([y.detach().flatten(), x.grad.flatten()]))  # type: ignore[union-attr]
    assert torch.equal(*gradients)


def check() -> None:
    """In each of two processes that know of each other already."""
    mesh = init_device_mesh("cpu", (2,))
    compare_eight_bits(mesh)
    for tuning in (FULL, LORA):
        compare(torch.distributed.get_rank(), mesh, tuning)
        compare_given(mesh, tuning)
