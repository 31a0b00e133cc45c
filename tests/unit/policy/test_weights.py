"""Trainable weights and their named sets."""

import re
from collections.abc import Sequence

import pytest
import torch
from flowfactory.policy import loaded
from flowfactory.policy.weights import Weights
from flowfactory.spec.tables import Full, Lora
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

FULL, LORA = Full(), Lora(rank=2, alpha=4.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def weights(tuning: Lora | Full, sets: Sequence[str] = (), seed: int = 0) -> tuple[nn.Module, Weights]:
    made = network()
    return made, Weights({"net": made}, tuning, ["0", "2"], sets, seed)


def shift(w: Weights, by: float) -> None:
    with torch.no_grad():
        for parameter in w.parameters.values():
            parameter += by


@pytest.mark.parametrize("tuning", [FULL, LORA])
def test_the_reference_is_what_the_network_was(tuning: Lora | Full) -> None:
    x = torch.randn(3, 4)
    before = network()(x)
    net, w = weights(tuning, ["reference"])
    shift(w, 0.1)
    after = net(x)
    with w.using("reference"):
        assert torch.equal(net(x), before)
    assert torch.equal(net(x), after)
    assert not torch.equal(after, before)


def test_a_lora_reference_costs_no_copy() -> None:
    assert weights(LORA, ["reference"])[1].sets == {}


def test_lora_trains_only_what_it_added_and_starts_without_effect() -> None:
    net, w = weights(LORA)
    assert all("lora_" in name for name in w.parameters)
    x = torch.randn(3, 4)
    assert torch.equal(net(x), network()(x))
    assert sum(p.requires_grad for p in net.parameters()) == len(w.parameters) == 4


def test_lora_initialisation_follows_the_seed() -> None:
    a, b, c = (weights(LORA, seed=s)[1].tensors("current") for s in (1, 1, 2))
    name = next(n for n in a if "lora_A" in n)
    assert torch.equal(a[name], b[name])
    assert not torch.equal(a[name], c[name])


def test_injecting_lora_leaves_global_randomness_alone() -> None:
    net = network()
    state = torch.get_rng_state()
    Weights({"net": net}, LORA, ["0"], [], seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_exchanging_moves_no_data() -> None:
    _, w = weights(FULL, ["old"])
    current = [p.data_ptr() for p in w.parameters.values()]
    old = [t.data_ptr() for t in w.sets["old"]]
    with w.using("old"):
        assert [p.data_ptr() for p in w.parameters.values()] == old
    assert [p.data_ptr() for p in w.parameters.values()] == current


def test_moving_blends_towards_the_current_weights() -> None:
    _, w = weights(FULL, ["old"])
    start = [t.clone() for t in w.sets["old"]]
    shift(w, 1.0)
    w.move("old", 0.75)
    for before, after in zip(start, w.sets["old"], strict=True):
        torch.testing.assert_close(after, before + 0.25)
    w.move("old", 0.0)
    for after, parameter in zip(w.sets["old"], w.parameters.values(), strict=True):
        torch.testing.assert_close(after, parameter.data, rtol=0, atol=1e-7)


def test_sets_are_float32_whatever_the_network_is() -> None:
    net = network().bfloat16()
    w = Weights({"net": net}, LORA, ["0"], ["ema"], 0)
    assert {t.dtype for t in [*w.parameters.values(), *w.sets["ema"]]} == {torch.float32}
    assert net[2].weight.dtype == torch.bfloat16


def test_a_set_cannot_move_while_another_is_in_use() -> None:
    _, w = weights(FULL, ["old", "ema"])
    with w.using("old"), pytest.raises(RuntimeError, match="'ema' cannot move while another set is in use"):
        w.move("ema", 0.5)
    w.move("ema", 0.5)


def test_sets_can_be_used_within_each_other() -> None:
    """As a loss does in the turn of a role: each name has its own values, wherever they lie meanwhile."""
    _, w = weights(FULL, ["fake", "old"])
    values = {}
    for number, name in enumerate(("fake", "old"), 1):
        with w.using(name):
            shift(w, number)
            values[name] = next(iter(w.parameters.values())).detach().clone()
    values["current"] = next(iter(w.parameters.values())).detach().clone()

    def check(name: str) -> None:
        assert torch.equal(next(iter(w.parameters.values())), values[name])

    with w.using("fake"):
        check("fake")
        with w.using("current"):
            check("current")
            with w.using("fake"):
                check("fake")
        with w.using("old"):
            check("old")
            for name in ("fake", "current", "old"):
                with w.using(name):
                    check(name)
            check("old")
        with w.using("fake"):
            check("fake")
    check("current")
    assert w.active == "current"


def test_an_unknown_set_is_named_with_those_there_are() -> None:
    _, w = weights(FULL, ["ema"])
    with pytest.raises(KeyError, match="no weight set 'old'; there are current, ema"), w.using("old"):
        pass


def test_an_exchange_is_undone_after_an_error() -> None:
    net, w = weights(FULL, ["old"])
    shift(w, 0.5)
    x = torch.randn(2, 4)
    expected = net(x)
    with pytest.raises(ZeroDivisionError), w.using("old"):
        raise ZeroDivisionError
    assert torch.equal(net(x), expected)


class Attention(nn.Module):
    """Something that is no layer itself."""

    def __init__(self, name: str = "to_q") -> None:
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(4, 4), "norm": nn.LayerNorm(4)})


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("to_q", "to_kk"), "`to_kk` names nothing in `one`; did you mean `to_q`"),
        (("nosuch",), "`nosuch` names nothing in `one`; its layers are `to_q`"),
        (("to_qq",), "`to_qq` names nothing in `one`; did you mean `to_q`"),
        (("q",), "`q` names nothing in `one`"),
        (("attn",), "`attn` names `attn` in `one`, a ModuleDict; name the layers in it"),
        (("to_q", "norm"), "`norm` names `attn.norm` in `one`, a LayerNorm"),
    ],
)
def test_a_target_that_adapts_nothing_is_refused(targets: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Weights({"one": Attention()}, Lora(rank=2, targets=targets), [], [], 0)


def test_a_target_has_to_be_in_every_network() -> None:
    networks = {"one": Attention(), "two": Attention("to_v")}
    with pytest.raises(ValueError, match="`to_q` names nothing in `two`"):
        Weights(networks, Lora(rank=2, targets=("to_q",)), [], [], 0)
    made = Weights({"one": Attention(), "two": Attention("to_v")}, Lora(rank=2), ["to_q", "to_v"], [], 0)
    assert {name.split(".lora_")[0] for name in made.parameters} == {"one.attn.to_q", "two.attn.to_v"}
    with pytest.raises(ValueError, match="`two` has none of `to_q`"):
        Weights({"one": Attention(), "two": Attention("to_v")}, Lora(rank=2), ["to_q"], [], 0)


def test_lora_starts_with_deviation_1_over_the_rank_and_two_networks_differently() -> None:
    networks = {name: nn.Sequential(nn.Linear(400, 8)) for name in ("one", "two")}
    made = Weights(networks, Lora(rank=16), ["0"], [], 3).tensors("current")
    first, second = (made[f"{name}.0.lora_A.default.weight"] for name in ("one", "two"))
    for drawn in (first, second):
        assert drawn.mean().item() == pytest.approx(0, abs=4e-3)
        assert drawn.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert not (first == second).any()


def test_alpha_is_twice_the_rank_unless_it_is_said() -> None:
    assert [Lora().alpha, Lora(rank=4).alpha, Lora(rank=4, alpha=64.0).alpha] == [64.0, 8.0, 64.0]


def test_rank_and_alpha_are_left_to_weights_to_begin_with() -> None:
    assert [Lora(from_="a/lora").rank, Lora(from_="a/lora").alpha] == [None, None]
    (layer,) = (m for m in weights(Lora(rank=2))[0].modules() if isinstance(m, BaseTunerLayer) and m.in_features == 4)
    assert layer.scaling == {"default": 2.0}


@pytest.mark.parametrize("rank", [4, 8, 64])
def test_lora_outputs_have_one_scale_whatever_the_rank(rank: int) -> None:
    """Who lowers the rank expects no louder adapter: `alpha` is twice the rank where it is not said."""
    net, _ = weights(Lora(rank=rank))
    scales = [module.scaling["default"] for module in net.modules() if isinstance(module, BaseTunerLayer)]
    assert scales == [2.0, 2.0]


def test_what_lora_adapts_is_not_taken_to_float32_and_back() -> None:
    """Under autocast, and with the same numbers as peft's own way."""
    net, w = weights(LORA)
    shift(w, 0.1)
    seen: list[torch.dtype] = []
    adapted = [module for module in net.modules() if isinstance(module, LoraLayer)]
    adapted[1].lora_A["default"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    found = []
    for ours in (False, True):
        if ours:
            loaded.leave_to_autocast(net)
        x = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        gradients = torch.autograd.grad(y.float().square().sum(), [x, *w.parameters.values()])
        found.append([y, *gradients])
    assert seen == [torch.float32, torch.bfloat16]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
