"""Which branches pruning leaves out: of trees that are laid out by hand, and over the epochs of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory import Lineage, Scores
from flowfactory.contracts.specs import Branches
from flowfactory.spec.window import grown
from flowfactory_plugin_branchgrpo import BranchGRPOSpec, Pruning
from flowfactory_plugin_branchgrpo.branchgrpo import BranchGRPO
from flowfactory_plugin_branchgrpo.pruning import left_out
from torch import Tensor

GROWTH = grown(Branches(2, (0, 2), "tree"), range(5), 6)
"""Two branches at steps 0 and 1, then four at each of 2, 3 and 4."""
TREES = 2
EACH = len(GROWTH.steps)
STEPS = torch.tensor(GROWTH.steps * TREES)
LAST = torch.tensor([[0.1, 0.9, 0.4, 0.2], [0.5, 0.6, 0.3, 0.8]], dtype=torch.float64)
"""What the four samples of each tree score."""


def judged() -> tuple[Scores, Tensor]:
    """Two trees whose branches are worth the mean of what they lead to."""
    under: list[list[int]] = [[] for _ in GROWTH.steps]
    for number, leaf in enumerate(GROWTH.leaves):
        while leaf >= 0:
            under[leaf].append(number)
            leaf = GROWTH.parents[leaf]
    values = torch.stack([torch.stack([tree[own].mean() for own in under]) for tree in LAST]).flatten()
    parents = torch.tensor([p if p < 0 else p + tree * EACH for tree in range(TREES) for p in GROWTH.parents])
    groups = torch.arange(TREES).repeat_interleave(EACH) * 10 + STEPS
    return Scores({"r": values}, {"r": 1.0}, lineage=Lineage(STEPS, parents, torch.zeros(len(STEPS)))), groups


def trained(pruning: Pruning, epochs: int = 0) -> tuple[Tensor, Tensor]:
    """Which branches are `(N,)`, and all their advantages; those kept have to be as without pruning."""
    scores, groups = judged()
    whole = BranchGRPO(BranchGRPOSpec(splits=(0, 2))).advantages(scores, groups)
    trainer = BranchGRPO(BranchGRPOSpec(splits=(0, 2), pruning=pruning))
    for _ in range(epochs):
        trainer.after_epoch({})
    found = trainer.advantages(scores, groups)
    kept = ~found.isnan()
    assert torch.equal(found[kept], whole[kept])
    return kept, whole


def steps_of(kept: Tensor) -> list[int]:
    """How many branches of each step are kept."""
    return [int((kept & (step == STEPS)).sum()) for step in range(5)]


def test_all_are_trained_unless_something_is_said() -> None:
    assert steps_of(trained(Pruning())[0]) == [4, 4, 8, 8, 8]


def test_steps_are_left_out_and_move_towards_noise_up_to_the_one_before_the_last_split() -> None:
    pruning = Pruning(steps=(3, 4), every=2)
    gone = [[step for step, n in enumerate(steps_of(trained(pruning, epochs)[0])) if n == 0] for epochs in range(8)]
    assert gone == [[3, 4], [3, 4], [2, 3], [2, 3], [1, 2], [1, 2], [1, 2], [1, 2]]
    assert steps_of(trained(Pruning(steps=(3, 4)), 7)[0])[3:] == [0, 0]


def test_it_ends_when_it_is_said_to() -> None:
    pruning = Pruning(steps=(4,), share=0.5, epochs=3)
    assert steps_of(trained(pruning, 2)[0]) != [4, 4, 8, 8, 8]
    assert steps_of(trained(pruning, 3)[0]) == [4, 4, 8, 8, 8]


def test_extremes_are_half_the_best_and_half_the_worst_of_each_tree() -> None:
    kept, A = trained(Pruning(share=0.5))
    for tree in range(TREES):
        late = (STEPS > 2) & (torch.arange(len(STEPS)) // EACH == tree)
        chosen = sorted(A[late & kept].tolist())
        ranked = sorted(A[late].tolist())
        assert chosen == [*ranked[:2], *ranked[-2:]]
    assert steps_of(kept)[:3] == [4, 4, 8]


def test_the_best_of_a_branch_are_of_equal_ones_the_first() -> None:
    """After the last split a branch is worth the same at every step."""
    assert steps_of(trained(Pruning(share=0.5, keep="best"))[0]) == [4, 4, 8, 8, 0]
    assert steps_of(trained(Pruning(share=0.01, keep="best"))[0]) == [4, 4, 8, 8, 0]
    assert steps_of(trained(Pruning(steps=(3,), share=0.5, keep="best"))[0]) == [4, 4, 8, 0, 8]


@pytest.mark.parametrize(("keep", "count", "share", "kept"), [
    ("best", 16, 0.5, 8), ("best", 3, 0.5, 1), ("best", 1, 0.1, 1), ("extremes", 16, 0.5, 8),
    ("extremes", 5, 0.6, 3), ("extremes", 4, 0.1, 2), ("extremes", 1, 0.1, 1), ("extremes", 2, 0.1, 2),
])  # fmt: skip
def test_as_many_as_the_authors_keep(keep: Any, count: int, share: float, kept: int) -> None:
    first, end = left_out(count, Pruning(keep=keep, share=share))
    assert count - (end - first) == kept
    if keep == "extremes":
        assert count - end == kept - kept // 2  # the worst


def test_the_trainer_remembers_how_many_epochs_are_over() -> None:
    one, other = (BranchGRPO(BranchGRPOSpec(pruning=Pruning(steps=(9,), every=1))) for _ in range(2))
    for _ in range(3):
        one.after_epoch({})
    other.restore(one.state())
    assert other.state()["epochs"] == 3


def test_what_scores_have_a_say_in_is_not_planned() -> None:
    assert BranchGRPOSpec().passes("current", 0, 8, 1, 20) == (0, 8)
    assert BranchGRPOSpec(pruning=Pruning(share=0.5)).passes("current", 0, 8, 1, 20) is None
