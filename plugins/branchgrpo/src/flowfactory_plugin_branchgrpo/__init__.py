"""BranchGRPO for flowfactory: what the spec may say, and where the trainer is. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import Branches, ClippedSpec, Needs, Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class BranchGRPOSpec(ClippedSpec):
    """BranchGRPO."""

    clip_low: float = key("The ratio is clipped below 1 - clip_low.", default=1e-3, gt=0, le=1)
    clip_high: float = key("The ratio is clipped above 1 + clip_high.", default=1e-3, gt=0)
    splits: tuple[int, ...] = key(
        "The stochastic steps at which every branch parts.", default=(0, 3, 6, 9), ge=0, le=998, min_length=1
    )
    width: int = key("Into how many.", default=2, ge=2)
    worth: Literal["mean", "likely"] = key(
        "What a branch is worth: the `mean` of the samples that it leads to; or of the branches that it parts into, "
        "the `likely` ones more.",
        default="mean",
    )

    @property
    def needs(self) -> Needs:
        return attrs.evolve(super().needs, branches=Branches(self.width, self.splits, "tree"))


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides(
        "branchgrpo",
        BranchGRPOSpec,
        "flowfactory_plugin_branchgrpo.branchgrpo:BranchGRPO",
        "BranchGRPO: trees of trajectories, whose branches are compared at every depth.",
    )
