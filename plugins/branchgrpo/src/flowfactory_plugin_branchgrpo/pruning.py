"""Which branches of a tree are not trained (BranchGRPO, arXiv:2509.06040, section on pruning).

By depth: those of some steps, which move towards noise as the run goes on. By width, after that: of those that begin
after the last split, of which a tree has equal ones at every step, only a share.
"""

from __future__ import annotations

import torch
from flowfactory import Lineage
from torch import Tensor

from flowfactory_plugin_branchgrpo import Pruning


def pruned(A: Tensor, lineage: Lineage, groups: Tensor, pruning: Pruning, last: int, epochs: int) -> Tensor:
    """Advantages `(N,)`, NaN where a branch is left out.

    Args:
        groups: of each branch, those of its tree and step. last: the last split. epochs: that are over.
    """
    if pruning.epochs is not None and epochs >= pruning.epochs:
        return A
    kept, steps = A.clone(), lineage.steps
    if pruning.steps is not None:
        shift = 0 if pruning.every is None else min(epochs // pruning.every, max(0, min(pruning.steps) + 1 - last))
        kept[torch.isin(steps, torch.tensor(pruning.steps) - shift)] = torch.nan
    if pruning.share == 1:
        return kept
    late = (steps > last) & ~kept.isnan()
    whose = ancestors(lineage, last) if pruning.keep == "best" else groups[ancestors(lineage, 0)]
    for one in whose[late].unique():
        own = torch.nonzero(late & (whose == one)).flatten()
        ranked = own[kept[own].argsort(descending=True, stable=True)]
        kept[ranked[slice(*left_out(len(own), pruning))]] = torch.nan
    return kept


def left_out(count: int, pruning: Pruning) -> tuple[int, int]:
    """The first one that is left out of so many, best first, and the first that no longer is."""
    if pruning.keep == "best":
        return max(1, int(count * pruning.share)), count
    most = min(count, max(2, int(count * pruning.share)))
    return most // 2, count - (most - most // 2)


def ancestors(lineage: Lineage, step: int) -> Tensor:
    """Of each branch `(N,)`, the one that it comes from and that begins at a step, or the first there is."""
    found = torch.arange(len(lineage.parents))
    while bool((going := (lineage.parents[found] >= 0) & (lineage.steps[found] > step)).any()):
        found = torch.where(going, lineage.parents[found], found)
    return found
