"""BranchGRPO for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import Branches, ClippedSpec, Needs, Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class Pruning:
    """Which branches are not trained. They are sampled and compared all the same."""

    steps: tuple[int, ...] | None = key(
        "Steps whose branches are left out; none when absent.", default=None, ge=0, le=998, min_length=1
    )
    every: int | None = key(
        "Epochs after which these steps move by one, towards noise, until the first of them is the step before the "
        "last split; they stay when absent.",
        default=None,
        ge=1,
    )
    share: float = key(
        "The share of the branches after the last split that is trained; 1: all.", default=1.0, gt=0, le=1
    )
    keep: Literal["best", "extremes"] = key(
        "Which of them are trained: of those that continue one branch of the last split, the `best`, and of equal ones "
        "the first; or, of those of a tree, half the best and half the worst (`extremes`).",
        default="extremes",
    )
    epochs: int | None = key("For how many epochs branches are left out; always when absent.", default=None, ge=1)


@attrs.frozen(kw_only=True)
class BranchGRPOSpec(ClippedSpec):
    """BranchGRPO."""

    clip_low: float = key("The ratio is clipped below 1 - clip_low.", default=1e-3, gt=0, le=1)
    clip_high: float = key("The ratio is clipped above 1 + clip_high.", default=1e-3, gt=0)
    splits: tuple[int, ...] = key(
        "The stochastic steps at which every branch divides.", default=(0, 3, 6, 9), ge=0, le=998, min_length=1
    )
    width: int = key("Into how many branches it divides.", default=2, ge=2)
    worth: Literal["mean", "likely"] = key(
        "The value of a branch: the `mean` of the samples that it leads to; or the mean of the branches that it "
        "divides into, in which more `likely` ones count more.",
        default="mean",
    )
    pruning: Pruning = key("Branches that are not trained; none when absent.", default=Pruning())

    @property
    def needs(self) -> Needs:
        return attrs.evolve(super().needs, branches=Branches(self.width, self.splits, "tree"))

    def passes(self, role: str, update: int, group: int, trained: int, steps: int) -> tuple[int, int] | None:
        """Those of every branch; with pruning the scores have a say."""
        return super().passes(role, update, group, trained, steps) if self.pruning == Pruning() else None


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides(
        "branchgrpo",
        BranchGRPOSpec,
        "flowfactory_plugin_branchgrpo.branchgrpo:BranchGRPO",
        "BranchGRPO: trees of trajectories, whose branches are compared at every depth.",
    )
