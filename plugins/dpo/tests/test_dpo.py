"""Diffusion-DPO against the numbers of other people's code, gradients included: pairs, their draws, and the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory.builtin import ODESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.specs import Times
from flowfactory.contracts.types import Batch, Rollout
from flowfactory.schedulers.ode import ODE
from flowfactory_plugin_dpo import PRETRAINING, DiffusionDPOSpec, DPOSpec
from flowfactory_plugin_dpo.dpo import DPO, Pairs, Term, errors
from support import GRID, STORAGE, Case, FieldPolicy, close, each
from torch import Tensor


def batch_of(x0: Tensor, advantages: Tensor, groups: Tensor) -> Batch:
    """A batch whose final latents are given."""
    rollout = Rollout(GRID, (), {len(GRID) - 1: x0}, {})
    number = torch.arange(float(len(x0)))
    return Batch(rollout, {"number": number}, advantages.double(), True, ODE(ODESpec()), groups)


def pairs_of(x0: Tensor) -> Batch:
    """Stored pairs: chosen and rejected side by side."""
    n = len(x0) // 2
    return batch_of(x0, torch.tensor([1.0, -1.0] * n), torch.arange(n).repeat_interleave(2))


def halves(x: Tensor) -> Tensor:
    """Pairs side by side as all chosen, then all rejected."""
    return torch.cat([x[0::2], x[1::2]])


def side_by_side(x: Tensor) -> Tensor:
    """And back."""
    return torch.stack(x.chunk(2), 1).flatten(0, 1)


class Given:
    """Draws that were made elsewhere: normals `(B,)` of the logit of how much is denoised, and noise `(B, …)`."""

    def __init__(self, normals: Tensor, noise: Tensor) -> None:
        self.u, self.noise = torch.special.ndtr(-normals.double())[:, None], noise

    def __len__(self) -> int:
        return len(self.u)

    def uniform(self, *shape: int) -> Tensor:
        assert shape == (1,)
        return self.u

    def normal(self, *shape: int) -> Tensor:
        assert shape == self.noise.shape[1:]
        return self.noise


# --- goldens -------------------------------------------------------------------------------------------------------


def verl(case: Case) -> dict[str, Any]:
    """A case of `diffusion_dpo`, its tensors side by side; its float64 ones as float32, which is what we compute in."""
    given = {name: x.float() if isinstance(x, Tensor) else x for name, x in case["inputs"].items()}
    return given | {"velocities": given["velocity"], "references": given["velocity_ref"]}


def flow_factory(case: Case) -> dict[str, Any]:
    """A case of `dpo`, likewise."""
    given = case["inputs"]

    def both(name: str) -> Tensor:
        return torch.stack([given[f"{name}_chosen"], given[f"{name}_rejected"]], 1).flatten(0, 1)

    twice = {name: given[name].repeat_interleave(2, 0) for name in ("noise", "sigma")}
    return twice | {"x0": both("x0"), "velocities": both("v"), "references": both("v_ref"), "beta": given["beta"]}


def compared(given: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
    """Of a case the argument of the sigmoid, the gradient by the velocities side by side, and the loss."""
    batch, v = pairs_of(given["x0"]), halves(given["velocities"]).requires_grad_()
    policy = FieldPolicy(v, reference=halves(given["references"]))
    trainer, pairs = DPO(DPOSpec(beta=given["beta"])), Pairs.of(batch.groups, batch.advantages)
    sigma, noise = given["sigma"][0::2], given["noise"][0::2]
    with policy.using("reference"), torch.no_grad():
        reference = errors(policy, batch, pairs, sigma, noise, 1.0)
    found = errors(policy, batch, pairs, sigma, noise, 1.0) - reference
    loss = trainer.loss(policy, batch, Term(pairs, sigma, noise, reference))
    (gradient,) = torch.autograd.grad(loss.parts["policy"], v)
    return found[0] - found[1], side_by_side(gradient), loss


def held(case: Case, given: dict[str, Any], inside: Tensor) -> tuple[Tensor, Tensor, Any]:
    """What `compared` found, once its argument is the golden's to rtol 1e-5 of beta times the errors' size."""
    difference, gradient, loss = compared(given)
    scale = given["beta"] * max(1.0, float((given["velocities"] - given["noise"] + given["x0"]).square().mean()))
    assert loss.parts["policy"].dtype == torch.float64
    close(-given["beta"] / 2 * difference, inside, 1e-5 * scale)
    return difference, gradient, loss


@each("diffusion_dpo", lambda case: case["name"].startswith("loss_"))
def test_loss_equals_verl_omnis_and_salesforces(case: Case) -> None:
    given, expected = verl(case), case["outputs"]
    difference, gradient, loss = held(case, given, expected["inside"])
    exact = -torch.nn.functional.logsigmoid(-given["beta"] / 2 * difference).mean()
    close(loss.parts["policy"], exact, 1e-12)
    if given["beta"] < 2000:  # above, the argument's rounding is larger than the loss's tolerance: see `check`
        close(loss.parts["policy"], expected["loss"], 1e-12, max(1e-5, 2 * case["check"]["loss"]))
        close(gradient, expected["grad_wrt_velocity"], 1e-7, max(1e-4, 2 * case["check"]["grad"]))
    close(loss.metrics["implicit_accuracy"], expected["implicit_accuracy"], 0)
    scale = 1e-5 * given["beta"] * max(1.0, float(expected["error"].max()))
    close(loss.metrics["reward_margin"], expected["reward_margin"], scale)
    rewards = expected["implicit_reward"]
    close(loss.metrics["reward_chosen"], rewards[0::2].double().mean(), scale)
    close(loss.metrics["reward_rejected"], rewards[1::2].double().mean(), scale)


@each("dpo", lambda case: case["name"].startswith("loss_"))
def test_loss_equals_flow_factorys(case: Case) -> None:
    expected = case["outputs"]
    _, gradient, loss = held(case, flow_factory(case), expected["inside"])
    close(loss.parts["policy"], expected["loss"], 0, 1e-5)
    close(gradient[0::2], expected["grad_chosen"], 1e-7, 1e-4)
    close(gradient[1::2], expected["grad_rejected"], 1e-7, 1e-4)
    close(loss.metrics["implicit_accuracy"], expected["implicit_accuracy"], 0)


@each("diffusion_dpo", lambda case: case["name"].startswith("pairs_"))
def test_pairs_equal_verl_omnis(case: Case) -> None:
    """A group of one has none here as there; one of equal rewards has one there, and here one that is left out."""
    groups, rewards = (torch.tensor(case["inputs"][name]) for name in ("groups", "rewards"))
    pairs = Pairs.of(groups, rewards)
    several = pairs.chosen != pairs.rejected
    both = torch.stack([pairs.chosen, pairs.rejected], 1)
    assert both[several].flatten().tolist() == case["outputs"]["selected"]
    assert not pairs.differ[~several].any()
    assert torch.equal(pairs.differ, rewards[pairs.chosen] > rewards[pairs.rejected])


@each("dpo", lambda case: case["name"].startswith("pairs_"))
def test_pairs_equal_flow_factorys(case: Case) -> None:
    pairs = Pairs.of(torch.tensor(case["inputs"]["groups"]), torch.tensor(case["inputs"]["advantages"]))
    both = torch.stack([pairs.chosen, pairs.rejected], 1)
    assert both.tolist() == case["outputs"]["pairs_chosen_rejected"]


@each("diffusion_dpo", lambda case: case["name"].startswith("shared_noise"))
def test_levels_and_noise_equal_verl_omnis(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    batch = pairs_of(given["x0"])
    draws: Any = Given(given["normals"].repeat_interleave(2), given["pair_noise"].repeat_interleave(2, 0))
    asked: list[tuple[Tensor, Tensor]] = []

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append((side_by_side(x), side_by_side(sigma)))
        return x

    (term,) = DPO(DPOSpec()).terms(FieldPolicy(velocity, reference=velocity), batch, draws)
    ((x, sigma),) = asked
    close(sigma, expected["sigma"], 1e-7, 1e-6)
    close(x, expected["noised"], 2e-6)
    assert torch.equal((1000 * (1 - term.sigma / (3 - 2 * term.sigma))).round().long(), expected["index"])


# --- what the loss does --------------------------------------------------------------------------------------------


def taken(advantages: list[float], groups: list[int], times: Times = PRETRAINING, **weights: float) -> tuple[Any, ...]:
    """A trainer's policy, batch and first term on some samples; its fields are `weight * x`."""
    x0 = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))[: len(groups)]
    batch = batch_of(x0, torch.tensor(advantages), torch.tensor(groups))
    fields = {name: (lambda x, sigma, w=w: w * x) for name, w in {"reference": 0.1, **weights}.items()}
    policy, trainer = FieldPolicy(fields.pop("current"), **fields), DPO(DPOSpec(beta=3.0, times=times))
    terms = trainer.terms(policy, batch, Draws([("dpo", slot) for slot in groups]))
    return policy, batch, terms, trainer


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 4), (3, 2, 4, 4)], ids=lambda s: f"rank{len(s) + 1}")
def test_a_swapped_pair_swaps_the_sign(shape: tuple[int, ...]) -> None:
    x0, old, noise = torch.randn(2, *shape), torch.randn(2, *shape), torch.randn(1, *shape)
    v, found = old.clone().requires_grad_(), []
    for sign in (1.0, -1.0):
        batch = batch_of(x0, sign * torch.tensor([1.0, -1.0]), torch.zeros(2).long())
        pairs = Pairs.of(batch.groups, batch.advantages)
        order = torch.cat([pairs.chosen, pairs.rejected])
        policy = FieldPolicy(v[order], reference=old[order])
        reference = errors(policy, batch, pairs, torch.tensor([0.6]), noise, 1.0).detach()
        loss = DPO(DPOSpec()).loss(policy, batch, Term(pairs, torch.tensor([0.6]), noise, reference))
        found.append(torch.autograd.grad(loss.parts["policy"], v)[0])
    close(found[0], -found[1], 1e-9)
    assert found[0].abs().max() > 0


def test_where_the_policy_is_the_reference() -> None:
    """The loss is log 2, its gradient beta / 4 of the errors', and no pair is in order: the comparison is strict."""
    policy, batch, (term,), trainer = taken([1.0, -1.0, 0.5, -0.5], [0, 0, 1, 1], current=0.1)
    loss = trainer.loss(policy, batch, term)
    close(loss.parts["policy"], torch.tensor(2.0).log(), 1e-7)
    assert float(loss.metrics["implicit_accuracy"]) == 0
    assert float(loss.metrics["pairs"]) == 1


def test_a_pair_has_one_level_and_one_noise_and_its_own_conditions() -> None:
    asked: list[tuple[Tensor, Tensor, Tensor]] = []

    class Watching(FieldPolicy):
        def velocity(self, x: Tensor, sigma: Tensor, conditions: Any, guidance: float | None = None) -> Tensor:
            asked.append((x, sigma, conditions["number"]))
            return super().velocity(x, sigma, conditions, guidance)

    groups = [0, 0, 0, 1, 1]
    x0 = torch.randn(5, 3, 4)
    batch = batch_of(x0, torch.tensor([0.0, 1.0, -1.0, -2.0, 2.0]), torch.tensor(groups))
    policy = Watching(lambda x, sigma: x, reference=lambda x, sigma: x)
    trainer = DPO(DPOSpec(times=Times(rule="uniform", count=2)))
    terms = trainer.terms(policy, batch, Draws([("dpo", slot) for slot in groups]))
    for term in terms:
        trainer.loss(policy, batch, term)
    assert len(asked) == 4
    for x, sigma, number in asked:
        assert number.tolist() == [1, 4, 2, 3]
        assert torch.equal(sigma[:2], sigma[2:])
        level = sigma[:, None, None]
        noise = (x - (1 - level) * x0[number.long()]) / level
        close(noise[:2], noise[2:], 1e-4)
        assert (noise[0] - noise[1]).abs().max() > 0.1
    assert policy.calls == ["reference", "reference", "current", "current"]
    assert policy.guidances == [1.0] * 4


def test_guidance_is_for_both() -> None:
    policy, batch, _, _ = taken([1.0, -1.0], [0, 0], current=0.2)
    policy.guidances.clear()
    trainer = DPO(DPOSpec(guidance=4.0))
    (term,) = trainer.terms(policy, batch, Draws([("dpo", 0)] * 2))
    trainer.loss(policy, batch, term)
    assert policy.guidances == [4.0, 4.0]


def test_equal_groups_and_single_samples_teach_nothing_and_count() -> None:
    """The mean is over all groups, so that micro-batches of any groups have the same gradient."""
    policy, batch, (term,), trainer = taken([1.0, -1.0, 0.0, 1e-9, 0.3], [0, 0, 1, 1, 2], current=0.2)
    loss = trainer.loss(policy, batch, term)
    alone, own, (one,), _ = taken([1.0, -1.0], [0, 0], current=0.2)
    close(3 * loss.parts["policy"], trainer.loss(alone, own, one).parts["policy"], 1e-9)
    close(loss.metrics["pairs"], torch.tensor(1 / 3), 1e-7)


def test_groups_without_a_pair_have_a_loss_without_a_gradient() -> None:
    w = torch.tensor(0.2, requires_grad=True)
    _, batch, (term,), trainer = taken([0.0, 0.0, 0.7], [0, 0, 1], current=0.2)
    loss = trainer.loss(FieldPolicy(lambda x, sigma: w * x), batch, term)
    assert set(loss.metrics) == {"pairs"}
    assert float(loss.parts["policy"].detach()) == 0
    assert float(torch.autograd.grad(loss.parts["policy"], w)[0]) == 0


def test_a_wrong_pair_far_off_is_finite() -> None:
    w, losses = torch.tensor(30.0, requires_grad=True), []
    for sign in (1.0, -1.0):
        _, batch, (term,), _ = taken([sign, -sign], [0, 0], current=0.2)
        loss = DPO(DPOSpec(beta=5000.0)).loss(FieldPolicy(lambda x, sigma: w * x), batch, term).parts["policy"]
        losses.append(float(loss.detach()))
        assert torch.autograd.grad(loss, w)[0].isfinite()
    assert max(losses) > 1000
    assert min(losses) == 0


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
def test_stored_latents_of_any_precision(dtype: torch.dtype) -> None:
    x0 = torch.randn(4, 3, 4).to(dtype)
    policy = FieldPolicy(lambda x, sigma: 0.3 * x.to(dtype), reference=lambda x, sigma: 0.3 * x.to(dtype))
    (term,) = DPO(DPOSpec()).terms(policy, pairs_of(x0), Draws([("dpo", i // 2) for i in range(4)]))
    assert term.reference.dtype == torch.float64
    close(DPO(DPOSpec()).loss(policy, pairs_of(x0), term).parts["policy"], torch.tensor(2.0).log(), 1e-7)


def test_needs() -> None:
    online, stored = DPOSpec().needs, DiffusionDPOSpec().needs
    assert (online.source, online.scores, stored.source, stored.scores) == ("rollouts", True, "pairs", False)
    for needs in (online, stored):
        assert (needs.batch, needs.draws, needs.trajectory, needs.density) == ("groups", "group", "final", "none")
        assert needs.reference
