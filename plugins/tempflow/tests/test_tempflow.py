"""TempFlow-GRPO's advantages and loss against the authors' numbers, gradients included."""

from __future__ import annotations

import pytest
import torch
from clipped import golden_batch, golden_keys
from flowfactory import Scores
from flowfactory.builtin import FlowSDESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Lineage
from flowfactory.losses.clipping import clipped
from flowfactory.losses.transition import Transition
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory_plugin_tempflow import TempFlowSpec
from flowfactory_plugin_tempflow.tempflow import TempFlow
from support import Case, FieldPolicy, close, each, transition
from torch import Tensor


def branches(rewards: Tensor, groups: list[int]) -> tuple[Scores, Tensor]:
    """Rewards by branch and step `(N, n)` as core has them: one after the other, compared by prompt and step."""
    rows, steps = rewards.shape
    at = torch.arange(steps).repeat(rows)
    whose = torch.tensor(groups).repeat_interleave(steps)
    lineage = Lineage(at, torch.full_like(at, -1), torch.zeros(len(at)))
    return Scores({"r": rewards.double().flatten()}, {"r": 1.0}, lineage=lineage), whose * steps + at


@each("branch_credit", lambda case: case["name"].startswith("columns"))
def test_advantages_equal_the_authors(case: Case) -> None:
    given = case["inputs"]
    scores, groups = branches(given["rewards"], given["groups"])
    spec = TempFlowSpec(std="global" if given["global_std"] else "group")
    found = TempFlow(spec).advantages(scores, groups).reshape(given["rewards"].shape)
    close(found, case["outputs"]["advantages"], 2e-6, 1e-5)


def test_those_of_a_step_and_a_prompt_add_up_to_nothing() -> None:
    scores, groups = branches(torch.rand(12, 5, generator=torch.Generator().manual_seed(0)), [0] * 6 + [1] * 6)
    found = TempFlow(TempFlowSpec()).advantages(scores, groups)
    for group in groups.unique():
        assert float(found[groups == group].sum()) == pytest.approx(0, abs=1e-9)
        assert found[groups == group].abs().max() > 0.5


@each("tempflow_weight")
def test_weight_equals_the_authors(case: Case) -> None:
    given = case["inputs"]
    x = torch.zeros(len(given["ratio"]), 2)
    sigmas = [1.0, given["sigma_max"], given["sigma"], given["sigma_next"]]
    batch = transition(FlowSDE(FlowSDESpec(eta=given["eta"])), sigmas, x, x, x[:, 0], given["advantages"])
    spec = TempFlowSpec(clip_low=-given["clip_range"][0], clip_high=given["clip_range"][1])
    weight = 2.25 * Transition.of(batch, 2).std()
    close((weight * clipped(given["ratio"], batch.advantages, spec)).mean(), case["outputs"]["policy_loss"], 0, 1e-5)


@each("grpo_loss")
def test_loss_and_gradient_are_flow_grpos_times_the_weight(case: Case) -> None:
    batch, v = golden_batch(case), case["inputs"]["velocity"].clone().requires_grad_()
    trainer, policy = TempFlow(TempFlowSpec(**golden_keys(case))), FieldPolicy(v)
    with torch.no_grad():
        (term,) = trainer.terms(policy, batch, Draws([]))
    loss = trainer.loss(policy, batch, term).parts["policy"]
    weight, expected = 2.25 * float(Transition.of(batch, 2).std()[0]), case["outputs"]
    close(loss, weight * expected["policy_loss"], 0, 1e-5)
    (gradient,) = torch.autograd.grad(loss, v)
    close(gradient, weight * expected["grad_policy_wrt_velocity"], 1e-7, 1e-4)


def test_without_a_weight_steps_are_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    x, x_next, v = (torch.randn(3, 4, generator=generator) for _ in range(3))
    scheduler = FlowSDE(FlowSDESpec(eta=0.7))
    batch = transition(scheduler, [1.0, 0.9, 0.8], x, x_next, torch.zeros(3), torch.tensor([1.0, -1.0, 0.5]))
    losses = []
    for spec in (TempFlowSpec(), TempFlowSpec(noise_weight=None)):
        (term,) = TempFlow(spec).terms(FieldPolicy(v), batch, Draws([]))
        losses.append(TempFlow(spec).loss(FieldPolicy(v), batch, term).parts["policy"])
    close(losses[0], losses[1] * 2.25 * Transition.of(batch, 1).std()[0], 0, 1e-6)


def test_needs() -> None:
    needs = TempFlowSpec(width=3).needs
    assert needs.branches is not None
    assert (needs.branches.width, needs.branches.at, needs.branches.kind) == (3, None, "fan")
    assert (needs.trajectory, needs.reference) == ("steps", False)
    assert TempFlowSpec(kl_beta=0.1).needs.reference
