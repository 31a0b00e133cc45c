"""BranchGRPO's credit against the authors' numbers, and its loss, which is Flow-GRPO's on each branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clipped import golden_batch, golden_keys
from flowfactory import Scores
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Lineage
from flowfactory.rewards.advantages import Scale
from flowfactory.rewards.advantages import scaled as scaled_by
from flowfactory_plugin_branchgrpo import BranchGRPOSpec
from flowfactory_plugin_branchgrpo.branchgrpo import BranchGRPO, likely
from support import Case, FieldPolicy, close, each
from torch import Tensor


def tree_of(case: Case) -> tuple[Tensor, Lineage, list[list[int]]]:
    """The authors' nodes but for the root, as branches: their samples' rewards, lineage, and the samples under each."""
    given = case["inputs"]
    parents = [parent - 1 for parent in given["parent"][1:]]
    lineage = Lineage(
        torch.tensor(given["step"][1:]) - 1, torch.tensor(parents), torch.tensor(given["edge_log_prob"][1:])
    )
    under: list[list[int]] = [[] for _ in parents]
    for number, leaf in enumerate(given["leaf"]):
        branch = leaf - 1
        while branch >= 0:
            under[branch].append(number)
            branch = parents[branch]
    rewards = given["leaf_rewards"].double()
    return torch.stack([rewards[own].mean() for own in under]), lineage, under


def is_tree(case: Case) -> bool:
    return case["name"].startswith("tree")


@each("branch_credit", is_tree)
def test_values_and_advantages_equal_the_authors(case: Case) -> None:
    values, lineage, _ = tree_of(case)
    worth: Any = "likely" if case["name"] == "tree_weighted" else "mean"
    if worth == "likely":
        found = likely(values, lineage.parents, lineage.logprobs, lineage.steps)
        close(found, case["outputs"]["node_rewards"][1:], 1e-6)
    else:
        close(values, case["outputs"]["node_rewards"][1:], 1e-6)
    scores = Scores({"r": values}, {"r": 1.0}, lineage=lineage)
    advantages = BranchGRPO(BranchGRPOSpec(worth=worth)).advantages(scores, lineage.steps)
    close(advantages, case["outputs"]["advantages"][1:], 2e-6, 1e-5)


def flat(count: int, groups: Tensor, labels: str = "r") -> tuple[dict[str, Tensor], Lineage]:
    """Branches of one step, `count` of them."""
    generator = torch.Generator().manual_seed(0)
    values = {label: torch.rand(count, generator=generator, dtype=torch.float64) for label in labels}
    return values, Lineage(torch.zeros_like(groups), torch.full_like(groups, -1), torch.zeros(count))


@pytest.mark.parametrize("std", ["group", "global"])
@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 2.0}], ids=["one", "two"])
def test_one_split_has_plain_group_advantages(std: Any, weights: dict[str, float]) -> None:
    """With n - 1; a single spread for all is of what is centred."""
    groups = torch.tensor([0] * 4 + [1] * 4)
    values, lineage = flat(8, groups, "ab")
    found = BranchGRPO(BranchGRPOSpec(std=std)).advantages(Scores(values, weights, lineage=lineage), groups)
    if std == "group":
        expected = scaled_by(values, weights, groups, "sum", "group", Scale(eps=1e-8, ddof=1), Scale())
        close(found, expected, 1e-9)
    assert float(found[:4].sum()) == pytest.approx(0, abs=1e-9)
    spread = found.square().sum() / (7 if std == "global" else 6)
    assert float(spread) == pytest.approx(1, abs=1e-6)


def test_each_reward_may_be_scaled_by_itself() -> None:
    groups = torch.tensor([0] * 4 + [1] * 4)
    values, lineage = flat(8, groups, "ab")
    many = {"a": values["a"], "b": 1000 * values["b"]}
    trainer = BranchGRPO(BranchGRPOSpec(aggregate="gdpo"))
    both = [trainer.advantages(Scores(v, {"a": 1.0, "b": 1.0}, lineage=lineage), groups) for v in (values, many)]
    close(both[0], both[1], 1e-6)


def test_what_is_alone_or_equal_teaches_nothing_and_what_has_no_score_takes_no_part() -> None:
    values = torch.tensor([0.3, 0.7, 0.7, 0.2, torch.nan, 0.4], dtype=torch.float64)
    groups = torch.tensor([0, 1, 1, 2, 2, 2])
    _, lineage = flat(6, groups)
    found = BranchGRPO(BranchGRPOSpec()).advantages(Scores({"r": values}, {"r": 1.0}, lineage=lineage), groups)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[4].isnan()
    close(found[[3, 5]], torch.tensor([-1, 1]) * 0.5**0.5, 1e-6)


@each("grpo_loss")
def test_loss_and_gradient_are_flow_grpos(case: Case) -> None:
    batch, v = golden_batch(case), case["inputs"]["velocity"].clone().requires_grad_()
    trainer = BranchGRPO(BranchGRPOSpec(**golden_keys(case)))
    with torch.no_grad():
        (term,) = trainer.terms(FieldPolicy(v), batch, Draws([]))
    loss = trainer.loss(FieldPolicy(v), batch, term).parts["policy"]
    close(loss, case["outputs"]["policy_loss"], 0, 1e-5)
    close(torch.autograd.grad(loss, v)[0], case["outputs"]["grad_policy_wrt_velocity"], 1e-7, 1e-4)


def test_needs() -> None:
    needs = BranchGRPOSpec(splits=(0, 2), width=3).needs
    assert needs.branches is not None
    assert (needs.branches.width, needs.branches.at, needs.branches.kind) == (3, (0, 2), "tree")
    assert needs.trajectory == "steps"
