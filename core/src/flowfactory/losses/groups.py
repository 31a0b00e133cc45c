"""Means over groups, for losses whose unit is a group; `B` samples of any number of whole groups."""

from __future__ import annotations

import torch
from torch import Tensor


def averaging(groups: Tensor, logits: Tensor | None = None) -> Tensor:
    """The matrix `(B, B)`, float64, that turns numbers `(B,)` into the mean over each sample's group.

    Args:
        groups: which group each sample is in, `(B,)`. logits: `(B,)`; their softmax over a group weights its mean.
    """
    same = groups[:, None] == groups
    logits = torch.zeros(len(groups), device=groups.device) if logits is None else logits
    return torch.softmax(torch.where(same, logits.double(), -torch.inf), dim=1)


def over_groups(values: Tensor, groups: Tensor) -> Tensor:
    """The mean over groups of the means of their samples' values `(B,)`: groups of any size count equally."""
    share = averaging(groups).diagonal()
    return (share * values).sum() / share.sum()
