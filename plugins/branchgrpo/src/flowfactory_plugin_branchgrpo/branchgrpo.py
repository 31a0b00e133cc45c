"""BranchGRPO (Li et al. 2025, arXiv:2509.06040): trees of trajectories, whose branches are compared at every depth.

There is noise at every stochastic step, and at some of them every branch parts into `width`, so that what they share is
sampled, and trained, once. Rewards of the samples go up:

    value = mean over the samples that a branch leads to, or  sum over its children of softmax(log p) value(child)
    A     = (value - mean) / (std + 1e-8)        over the branches of one step in one tree; std with n - 1
    A     = 0                                    where there is one, or std < 1e-6
    L     = max(-A rho, -A clip(rho, 1 - low, 1 + high)) + beta KL(p_theta || p_ref)

for the one step that each branch begins with, `rho = p_theta(x' | x) / p_old(x' | x)`. Pruned branches take no part in
`L`: see `pruning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from flowfactory import Batch, ClippedTerm, Draws, Loss, Policy, Scores, Trainer, clipped_loss, clipped_terms
from torch import Tensor

from flowfactory_plugin_branchgrpo import BranchGRPOSpec
from flowfactory_plugin_branchgrpo.pruning import pruned

EPS, LEAST = 1e-8, 1e-6


class BranchGRPO(Trainer[BranchGRPOSpec]):
    """BranchGRPO, one term per branch: its step."""

    def __init__(self, spec: BranchGRPOSpec) -> None:
        super().__init__(spec)
        self._epochs = 0  # that are over

    def advantages(self, scores: Scores, groups: Tensor) -> Tensor:
        """Those of branches that are pruned are NaN."""
        assert scores.lineage is not None
        last, found = max(self.spec.splits), self.compared(scores, groups)
        return pruned(found, scores.lineage, groups, self.spec.pruning, last, self._epochs)

    def after_epoch(self, metrics: Mapping[str, float]) -> None:
        self._epochs += 1

    def state(self) -> Mapping[str, Tensor]:
        return {"epochs": torch.tensor(self._epochs)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._epochs = int(state["epochs"])

    def compared(self, scores: Scores, groups: Tensor) -> Tensor:
        """With `std = "global"` the spread is that of all trees' branches of a step."""
        assert scores.lineage is not None
        values, steps, weights = dict(scores.values), scores.lineage.steps, scores.weights
        if self.spec.worth == "likely":
            parents, logprobs = scores.lineage.parents, scores.lineage.logprobs
            values = {label: likely(column, parents, logprobs, steps) for label, column in values.items()}
        together = groups if self.spec.std == "group" else steps
        apart = {label: apart_from_mean(column, groups) for label, column in values.items() if weights[label] != 0}
        if self.spec.aggregate == "sum":
            return scaled(total([weights[label] * column for label, column in apart.items()]), together)
        found = total([weights[label] * scaled(column, together) for label, column in apart.items()])
        return scaled(found, torch.zeros_like(groups))

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[ClippedTerm]:
        return clipped_terms(policy, batch, self.spec)

    def loss(self, policy: Policy, batch: Batch, term: ClippedTerm) -> Loss:
        return clipped_loss(policy, batch, term, self.spec)


def likely(values: Tensor, parents: Tensor, logprobs: Tensor, steps: Tensor) -> Tensor:
    """What branches are worth `(N,)` if the more probable ones count more; those that do not part keep their values.

    One without a value (NaN) is not counted.
    """
    worth = values.double().clone()
    for step in steps.unique().flip(0):
        own = (steps == step) & (parents >= 0) & ~worth.isnan()
        above, weight = parents[own], (logprobs[own].double() - logprobs.max()).exp()
        shares, sums = (torch.zeros_like(worth).index_add(0, above, x) for x in (weight, weight * worth[own]))
        worth = torch.where(shares > 0, sums / shares, worth)
    return worth


def apart_from_mean(values: Tensor, groups: Tensor) -> Tensor:
    """How far values `(N,)` lie from their group's mean; NaN takes no part."""
    found = values.double().clone()
    for group in groups.unique():
        own = groups == group
        found[own] -= found[own].nanmean()
    return found


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum over rewards, NaN counting 0; NaN where all are."""
    stacked = torch.stack(list(parts))
    return stacked.nansum(0).masked_fill(stacked.isnan().all(0), torch.nan)


def scaled(apart: Tensor, groups: Tensor) -> Tensor:
    """Distances from means `(N,)`, divided by their spread over a group; 0 where there is none."""
    found = apart.clone()
    for group in groups.unique():
        known = (groups == group) & ~apart.isnan()
        spread = (apart[known].square().sum() / max(int(known.sum()) - 1, 1)).sqrt()
        found[known] = apart[known] / (spread + EPS) if spread >= LEAST else 0.0
    return found
